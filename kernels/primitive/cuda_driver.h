// CUDA's driver, found at run time: libmlx.so's CPU build comes without it.
#pragma once

#include <cstddef>

#include "mlx/allocator.h"

namespace metal_rpc {

// A function of the driver; the calling thread then uses the device that MLX uses.
void* driver_function(const char* name);

// Throws what a function of the driver has answered, unless that is success.
void check_driver(const char* name, int status);

// Calls a function of the driver. The arguments have exactly its types.
template <typename... Arguments>
void call_driver(const char* name, Arguments... arguments) {
  auto function = reinterpret_cast<int (*)(Arguments...)>(driver_function(name));
  check_driver(name, function(arguments...));
}

// What an allocator::Buffer of MLX's CUDA backend points at: mlx/backend/cuda/allocator.h.
struct CudaBuffer {
  void* data;
  size_t size_bytes;
  // Negative: memory that the host can use.
  int device;
};

inline char* device_address(mlx::core::allocator::Buffer buffer) {
  return static_cast<char*>(static_cast<CudaBuffer*>(buffer.ptr())->data);
}

} // namespace metal_rpc
