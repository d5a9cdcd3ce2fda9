// Arrays whose memory or whose readiness MLX's C API cannot express.

#include <sys/mman.h>
#include <unistd.h>
#include <cerrno>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>

#include "abi.h"
#include "guard.h"
#include "mlx/backend/gpu/device_info.h"
#include "mlx/c/private/array.h"
#include "mlx/c/private/enums.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"
#include "upload.h"

namespace mx = mlx::core;

namespace {

size_t checked_size_bytes(const mx::Shape& shape, mx::Dtype dtype) {
  size_t size = mx::size_of(dtype);
  for (auto dim : shape) {
    if (dim < 0 || __builtin_mul_overflow(size, static_cast<size_t>(dim), &size)) {
      throw std::invalid_argument("shape does not describe an array that fits the address space");
    }
  }
  return size;
}

// Zero pages that the system hands out on first touch.
class Mapping {
 public:
  explicit Mapping(size_t size_bytes) : size_bytes_(size_bytes) {
    base_ = mmap(
        nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
    if (base_ == MAP_FAILED) {
      throw std::system_error(errno, std::generic_category(), "mmap");
    }
  }
  char* base() const {
    return static_cast<char*>(base_);
  }
  size_t size_bytes() const {
    return size_bytes_;
  }

 private:
  void* base_;
  size_t size_bytes_;
};

// MLX's host allocator keeps the size of a buffer in the word before its data, and a Buffer points
// at that word. The data starts one page into the mapping, so that it is page-aligned too.
mx::array reserve_host(const mx::Shape& shape, mx::Dtype dtype) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t data_size_bytes = checked_size_bytes(shape, dtype);
  if (data_size_bytes > std::numeric_limits<size_t>::max() / 2) {
    throw std::bad_alloc();
  }
  const size_t mapped = page + (data_size_bytes + page - 1) / page * page;
  Mapping mapping(mapped);
  auto header = reinterpret_cast<size_t*>(mapping.base() + page) - 1;
  *header = data_size_bytes;
  return mx::array(
      mx::allocator::Buffer(header),
      shape,
      dtype,
      [base = mapping.base(), mapped](mx::allocator::Buffer) { munmap(base, mapped); });
}

// Memory that both a GPU and the host can use: all that Metal has, managed memory with CUDA.
mx::array host_zeros(const mx::Shape& shape, mx::Dtype dtype) {
  const size_t size_bytes = checked_size_bytes(shape, dtype);
  mx::array array(mx::allocator::malloc(size_bytes), shape, dtype);
  if (size_bytes > 0) {
    std::memset(array.data<char>(), 0, size_bytes);
  }
  return array;
}


} // namespace

// Integers are tables that kernels of the host read too, floats are caches and only the GPU's.
extern "C" const char*
metal_rpc_reserve(mlx_array* result, const int* dims, size_t ndim, mlx_dtype dtype) {
  return guard([&] {
    mx::Shape shape(dims, dims + ndim);
    auto type = mlx_dtype_to_cpp(dtype);
    if (mx::gpu::is_available()) {
      // A GPU allocator's memory comes zeroed only by writing it: committed at once, not lazily.
      const bool is_cache =
          mx::default_device() == mx::Device::gpu && mx::issubdtype(type, mx::floating);
      checked_size_bytes(shape, type);
      auto array = is_cache ? mx::zeros(shape, type) : host_zeros(shape, type);
      mx::eval(array);
      mlx_array_set_(*result, std::move(array));
    } else {
      mlx_array_set_(*result, reserve_host(shape, type));
    }
  });
}

extern "C" const char*
metal_rpc_host_array(mlx_array* result, const int* dims, size_t ndim, mlx_dtype dtype) {
  return guard([&] {
    mx::Shape shape(dims, dims + ndim);
    auto type = mlx_dtype_to_cpp(dtype);
    checked_size_bytes(shape, type);
    if (auto staging = metal_rpc::staging_array(shape, type)) {
      mlx_array_set_(*result, std::move(*staging));
      return;
    }
    // What the memory looks like is the allocator's choice, and MLX has one for the process.
    const bool has_gpu = mx::gpu::is_available();
    mlx_array_set_(*result, has_gpu ? host_zeros(shape, type) : reserve_host(shape, type));
  });
}

extern "C" const char* metal_rpc_to_device(mlx_array* result, mlx_array handle) {
  return guard([&] {
    auto& array = mlx_array_get_(handle);
    mlx_array_set_(*result, metal_rpc::in_device_memory(array).value_or(array));
  });
}

extern "C" const char* metal_rpc_part(
    mlx_array* result,
    mlx_array handle,
    size_t first,
    const int* dims,
    size_t ndim) {
  return guard([&] {
    auto& array = mlx_array_get_(handle);
    mx::array part(mx::Shape(dims, dims + ndim), array.dtype(), nullptr, {});
    if (array.status() == mx::array::Status::unscheduled || !array.flags().row_contiguous ||
        first + part.size() > array.size()) {
      throw std::invalid_argument("array has no such part, or none before it is evaluated");
    }
    // The strides of a fresh array are those of row order.
    part.copy_shared_buffer(array, part.strides(), array.flags(), part.size(), first);
    if (array.event().valid()) {
      part.attach_event(array.event());
    }
    part.set_status(array.status());
    mlx_array_set_(*result, std::move(part));
  });
}

extern "C" const char* metal_rpc_wait(mlx_array handle) {
  return guard([&] {
    auto& array = mlx_array_get_(handle);
    if (array.status() == mx::array::Status::unscheduled) {
      throw std::invalid_argument("array is not scheduled; call async_eval first");
    }
    array.wait();
  });
}

extern "C" const char* metal_rpc_address(size_t* result, mlx_array handle) {
  return guard([&] {
    auto& array = mlx_array_get_(handle);
    if (array.status() == mx::array::Status::unscheduled) {
      throw std::invalid_argument("array has no memory before it is evaluated");
    }
    // The address of the data would move it to the host.
    *result = reinterpret_cast<size_t>(array.buffer().ptr()) + array.offset();
  });
}

extern "C" const char* metal_rpc_data(metal_rpc_view* result, mlx_array handle) {
  return guard([&] {
    auto& array = mlx_array_get_(handle);
    if (array.status() == mx::array::Status::unscheduled) {
      throw std::invalid_argument("array has no memory before it is evaluated");
    }
    if (!array.flags().row_contiguous) {
      throw std::invalid_argument("array is not in row order");
    }
    *result = {array.data<char>(), array.nbytes()};
  });
}
