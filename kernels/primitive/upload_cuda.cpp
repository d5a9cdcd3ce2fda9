// MLX puts what the host writes into managed memory, whose pages then move at every step: to the GPU
// when a kernel first touches them, and back when they are written again. Each move takes longer than
// a small kernel. Pinned memory stays where it is.

#include "upload.h"

#include <dlfcn.h>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/device.h"

namespace mx = mlx::core;

namespace metal_rpc {
namespace {

// What an allocator::Buffer of MLX's CUDA backend points at: mlx/backend/cuda/allocator.h.
struct CudaBuffer {
  void* data;
  size_t size_bytes;
  // Negative: memory that the host can use.
  int device;
};

void* allocate_pinned(size_t size_bytes) {
  constexpr unsigned kPortableAndMapped = 3;
  using Allocate = int(void**, size_t, unsigned);
  static void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  static auto allocate =
      reinterpret_cast<Allocate*>(driver ? dlsym(driver, "cuMemHostAlloc") : nullptr);
  void* data = nullptr;
  if (allocate == nullptr || allocate(&data, size_bytes, kPortableAndMapped) != 0) {
    throw std::runtime_error(
        "cannot pin " + std::to_string(size_bytes) + " bytes of the host's memory");
  }
  return data;
}

// Blocks in powers of two. They are used again and never given back: a step's few arrays.
class Pool {
 public:
  CudaBuffer* take(size_t wanted) {
    size_t size_bytes = 4096;
    while (size_bytes < wanted) {
      size_bytes *= 2;
    }
    std::lock_guard lock(mutex_);
    auto& free = free_[size_bytes];
    if (free.empty()) {
      return new CudaBuffer{allocate_pinned(size_bytes), size_bytes, -1};
    }
    auto buffer = free.back();
    free.pop_back();
    return buffer;
  }
  void give_back(CudaBuffer* buffer) {
    std::lock_guard lock(mutex_);
    free_[buffer->size_bytes].push_back(buffer);
  }

 private:
  std::mutex mutex_;
  std::map<size_t, std::vector<CudaBuffer*>> free_;
};

} // namespace

std::optional<mx::array> pinned_array(const int* values, const mx::Shape& shape) {
  if (mx::default_device() != mx::Device::gpu) {
    return std::nullopt;
  }
  // Never freed: arrays may outlive everything else.
  static auto& pool = *new Pool;
  size_t count = 1;
  for (auto dim : shape) {
    count *= dim;
  }
  auto buffer = pool.take(count * sizeof(int));
  std::memcpy(buffer->data, values, count * sizeof(int));
  return mx::array(
      mx::allocator::Buffer(buffer), shape, mx::int32, [buffer](mx::allocator::Buffer) {
        pool.give_back(buffer);
      });
}

} // namespace metal_rpc
