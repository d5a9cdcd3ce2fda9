// MLX puts what the host writes into managed memory, whose pages then move at every step: to the GPU
// when a kernel first touches them, and back when they are written again. Each move takes longer than
// a small kernel. Pinned memory stays where it is, and is copied in the order of the stream.

#include "upload.h"

#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <vector>

#include "cuda_driver.h"
#include "cuda_stream.h"
#include "mlx/device.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace mx = mlx::core;

namespace metal_rpc {
namespace {

// Blocks in powers of two. They are used again and never given back: a step's few arrays.
class Pool {
 public:
  Pool(int device, void* (*allocate)(size_t)) : device_(device), allocate_(allocate) {}

  CudaBuffer* take(size_t wanted) {
    size_t size_bytes = 4096;
    while (size_bytes < wanted) {
      size_bytes *= 2;
    }
    std::lock_guard lock(mutex_);
    auto& free = free_[size_bytes];
    if (free.empty()) {
      return new CudaBuffer{allocate_(size_bytes), size_bytes, device_};
    }
    auto buffer = free.back();
    free.pop_back();
    return buffer;
  }
  void give_back(CudaBuffer* buffer) {
    std::lock_guard lock(mutex_);
    free_[buffer->size_bytes].push_back(buffer);
  }
  // An array that gives its block back in the end.
  mx::array array(const mx::Shape& shape) {
    size_t count = 1;
    for (auto dim : shape) {
      count *= dim;
    }
    auto buffer = take(count * sizeof(int));
    return mx::array(
        mx::allocator::Buffer(buffer), shape, mx::int32, [this, buffer](mx::allocator::Buffer) {
          give_back(buffer);
        });
  }

 private:
  int device_;
  void* (*allocate_)(size_t);
  std::mutex mutex_;
  std::map<size_t, std::vector<CudaBuffer*>> free_;
};

void* allocate_pinned(size_t size_bytes) {
  constexpr unsigned kPortableAndMapped = 3;
  void* data = nullptr;
  call_driver("cuMemHostAlloc", &data, size_bytes, kPortableAndMapped);
  return data;
}

void* allocate_on_device(size_t size_bytes) {
  void* data = nullptr;
  call_driver("cuMemAlloc_v2", &data, size_bytes);
  return data;
}

// Never freed: arrays may outlive everything else.
Pool& pinned_pool() {
  static auto& pool = *new Pool(-1, allocate_pinned);
  return pool;
}

Pool& device_pool() {
  static auto& pool = *new Pool(0, allocate_on_device);
  return pool;
}

} // namespace

std::optional<mx::array>
uploaded(const int* values, const mx::Shape& shape, mx::Stream stream) {
  if (stream.device != mx::Device::gpu) {
    return std::nullopt;
  }
  auto pinned = *pinned_array(values, shape);
  auto array = device_pool().array(shape);
  auto& encoder = command_encoder(stream);
  call_driver(
      "cuMemcpyHtoDAsync_v2",
      device_address(array.buffer()),
      static_cast<const void*>(device_address(pinned.buffer())),
      pinned.nbytes(),
      encoder.stream);
  encoder.temporaries.push_back(pinned.data_shared_ptr());
  return array;
}

std::optional<mx::array> pinned_array(const int* values, const mx::Shape& shape) {
  if (mx::default_device() != mx::Device::gpu) {
    return std::nullopt;
  }
  auto array = pinned_pool().array(shape);
  if (values != nullptr) {
    std::memcpy(device_address(array.buffer()), values, array.nbytes());
  }
  return array;
}

std::optional<mx::array> staging_array(const mx::Shape& shape, mx::Dtype dtype) {
  if (mx::default_device() != mx::Device::gpu) {
    return std::nullopt;
  }
  // The tensors of a checkpoint are read one after the other: touching new pages for each would
  // take longer than reading them.
  static thread_local std::vector<char> spare;
  size_t size_bytes = mx::size_of(dtype);
  for (auto dim : shape) {
    size_bytes *= dim;
  }
  auto memory = new std::vector<char>(std::move(spare));
  memory->assign(size_bytes, 0);
  auto buffer = new CudaBuffer{memory->data(), size_bytes, -1};
  return mx::array(
      mx::allocator::Buffer(buffer), shape, dtype, [memory, buffer](mx::allocator::Buffer) {
        spare = std::move(*memory);
        delete memory;
        delete buffer;
      });
}

std::optional<mx::array> in_device_memory(const mx::array& array) {
  if (mx::default_device() != mx::Device::gpu || array.size() == 0) {
    return std::nullopt;
  }
  auto copy = mx::zeros(array.shape(), array.dtype());
  mx::eval(copy);
  call_driver(
      "cuMemcpyHtoD_v2",
      device_address(copy.buffer()),
      static_cast<const void*>(device_address(array.buffer())),
      array.nbytes());
  return copy;
}

} // namespace metal_rpc
