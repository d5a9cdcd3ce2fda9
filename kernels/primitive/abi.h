// The C face of the primitives: what src/ffi.rs declares again in Rust. Keep the two in step.
#pragma once

#include <cstddef>

#include "mlx/c/array.h"
#include "mlx/c/stream.h"

extern "C" {

// Memory of one evaluated, row-contiguous array. Valid while a kernel runs, no longer.
struct metal_rpc_view {
  void* data;
  size_t size_bytes;
};

// A kernel for the host. False means that it failed: `error` then holds the reason, zero-terminated.
using metal_rpc_run = bool (*)(
    const void* params,
    const metal_rpc_view* inputs,
    size_t num_inputs,
    metal_rpc_view* outputs,
    size_t num_outputs,
    char* error,
    size_t error_size_bytes);

// What to run, and with which constants. `params` is copied; `name` must live for ever.
struct metal_rpc_kernel {
  const char* name;
  metal_rpc_run run;
  const void* params;
  size_t params_size_bytes;
  // The same inputs always give the same outputs.
  bool is_repeatable;
};

// One output: the buffer of input `alias_of`, or a fresh one if `alias_of` is negative.
struct metal_rpc_output {
  int alias_of;
  const int* shape;
  size_t ndim;
  mlx_dtype dtype;
};

// A constant of a kernel of the dialect.
struct metal_rpc_scalar {
  bool is_float;
  union {
    int integer;
    float real;
  };
};

// A kernel of the dialect and how to run it: see Launch in gpu_kernel.h. Everything is copied but
// the texts of `pieces`, which must live for ever.
struct metal_rpc_launch {
  const char* name;
  const char* defines;
  const char* const* pieces;
  size_t num_pieces;
  const metal_rpc_scalar* scalars;
  size_t num_scalars;
  int groups[3];
  int threads;
};

// All functions return null, or the reason of the failure: owned by the calling thread and valid
// until its next call.
const char* metal_rpc_add_node(
    const metal_rpc_kernel* kernel,
    const mlx_array* inputs,
    size_t num_inputs,
    const metal_rpc_output* outputs,
    mlx_array* results,
    size_t num_outputs,
    mlx_stream stream);
const char* metal_rpc_add_launch(
    const metal_rpc_launch* launch,
    const mlx_array* inputs,
    size_t num_inputs,
    const metal_rpc_output* outputs,
    mlx_array* results,
    size_t num_outputs,
    mlx_stream stream);
const char* metal_rpc_upload(
    mlx_array* result,
    bool* is_uploaded,
    const int* values,
    const int* shape,
    size_t ndim,
    mlx_stream stream);
const char* metal_rpc_pinned_array(
    mlx_array* result,
    bool* is_pinned,
    const int* shape,
    size_t ndim);
const char* metal_rpc_part(
    mlx_array* result,
    mlx_array array,
    size_t first,
    const int* shape,
    size_t ndim);
// A recording, or null where nothing can be recorded: see replay.h.
const char* metal_rpc_new_recording(void** result, size_t num_numbers, mlx_stream stream);
void metal_rpc_free_recording(void* recording);
const char* metal_rpc_recording_numbers(mlx_array* result, void* recording);
const char* metal_rpc_record(
    void** evaluation,
    bool* is_complete,
    void* recording,
    const int* values,
    const mlx_array* outputs,
    size_t num_outputs,
    mlx_array* results,
    size_t num_results);
const char* metal_rpc_replay(
    void** evaluation,
    void* recording,
    const int* values,
    mlx_array* results,
    size_t num_results);
const char* metal_rpc_rehearse(mlx_stream stream);
const char* metal_rpc_is_gpu(bool* result, mlx_stream stream);
const char* metal_rpc_gpu_memory(size_t* size_bytes);
const char* metal_rpc_reserve(
    mlx_array* result,
    const int* shape,
    size_t ndim,
    mlx_dtype dtype);
const char* metal_rpc_host_array(
    mlx_array* result,
    const int* shape,
    size_t ndim,
    mlx_dtype dtype);
const char* metal_rpc_to_device(mlx_array* result, mlx_array array);
const char* metal_rpc_address(size_t* result, mlx_array array);
const char* metal_rpc_wait(mlx_array array);
// An Evaluation: see evaluation.h.
const char* metal_rpc_start(void** evaluation, const mlx_array* outputs, size_t num_outputs);
const char* metal_rpc_wait_for(void* evaluation);
void metal_rpc_free_evaluation(void* evaluation);
const char* metal_rpc_data(metal_rpc_view* result, mlx_array array);

} // extern "C"
