// Who records on which stream, and the C face of recordings.

#include "replay.h"

#include "abi.h"
#include "guard.h"
#include "mlx/c/private/array.h"
#include "mlx/c/private/stream.h"

namespace {

metal_rpc::Recording& recording_of(void* handle) {
  return *static_cast<metal_rpc::Recording*>(handle);
}

void set(void** evaluation, mlx_array* results, metal_rpc::Begun begun) {
  for (size_t i = 0; i < begun.results.size(); i++) {
    mlx_array_set_(results[i], std::move(begun.results[i]));
  }
  *evaluation = new metal_rpc::Evaluation(std::move(begun.evaluation));
}

} // namespace

namespace metal_rpc {

std::unique_ptr<Recording> new_recording(size_t num_numbers, mlx::core::Stream stream) {
  if (num_numbers == 0) {
    return nullptr;
  }
  return stream.device == mlx::core::Device::cpu ? new_host_recording(num_numbers, stream)
                                                 : new_gpu_recording(num_numbers, stream);
}

} // namespace metal_rpc

extern "C" const char*
metal_rpc_new_recording(void** result, size_t num_numbers, mlx_stream stream) {
  return guard([&] {
    *result = metal_rpc::new_recording(num_numbers, mlx_stream_get_(stream)).release();
  });
}

extern "C" void metal_rpc_free_recording(void* recording) {
  // What fails while it goes is reported by whoever uses the device next.
  guard([&] { delete &recording_of(recording); });
}

extern "C" const char* metal_rpc_recording_numbers(mlx_array* result, void* recording) {
  return guard([&] { mlx_array_set_(*result, recording_of(recording).numbers()); });
}

extern "C" const char* metal_rpc_record(
    void** evaluation,
    bool* is_complete,
    void* recording,
    const int* values,
    const mlx_array* outputs,
    size_t num_outputs,
    mlx_array* results,
    size_t num_results) {
  return guard([&] {
    std::vector<mlx::core::array> arrays;
    for (size_t i = 0; i < num_outputs; i++) {
      arrays.push_back(mlx_array_get_(outputs[i]));
    }
    auto begun = recording_of(recording).record(values, arrays, num_results);
    *is_complete = recording_of(recording).is_complete();
    set(evaluation, results, std::move(begun));
  });
}

extern "C" const char* metal_rpc_replay(
    void** evaluation,
    void* recording,
    const int* values,
    mlx_array* results,
    size_t) {
  return guard([&] { set(evaluation, results, recording_of(recording).replay(values)); });
}

extern "C" const char* metal_rpc_rehearse(mlx_stream stream) {
  return guard([&] { metal_rpc::rehearse(mlx_stream_get_(stream)); });
}
