// An allocator whose failures can be caught.
//
// MLX's host allocator hands on what malloc says, and where that is null MLX writes to address zero:
// a step that needs more memory than there is would end the daemon. Those of Metal and CUDA throw,
// and so does this one, which stands before any of them.
//
// MLX has no way to set an allocator, but asks this function for it, and the dynamic linker looks for
// a function in the executable before it looks in a library. So this definition is the one that
// libmlx.so calls, too; kernels/tests/allocator.rs fails if it is not.

#include <dlfcn.h>
#include <stdexcept>
#include <string>

#include "mlx/allocator.h"
#include "mlx/memory.h"

namespace mlx::core::allocator {

namespace {

class Throwing : public Allocator {
 public:
  explicit Throwing(Allocator& inner) : inner_(inner) {}

  Buffer malloc(size_t size) override {
    auto buffer = inner_.malloc(size);
    if (buffer.ptr() == nullptr && size > 0) {
      // MLX has counted it, and waits for each node of a graph while more is taken than its limit.
      set_memory_limit(get_memory_limit() + size);
      throw std::runtime_error("[malloc] Unable to allocate " + std::to_string(size) + " bytes.");
    }
    return buffer;
  }

  void free(Buffer buffer) override {
    inner_.free(buffer);
  }

  size_t size(Buffer buffer) const override {
    return inner_.size(buffer);
  }

  Buffer make_buffer(void* ptr, size_t size) override {
    return inner_.make_buffer(ptr, size);
  }

  void release(Buffer buffer) override {
    inner_.release(buffer);
  }

 private:
  Allocator& inner_;
};

Allocator& of_mlx() {
  auto function = dlsym(RTLD_NEXT, "_ZN3mlx4core9allocator9allocatorEv");
  if (function == nullptr) {
    throw std::logic_error("libmlx.so has no allocator");
  }
  return reinterpret_cast<Allocator& (*)()>(function)();
}

} // namespace

Allocator& allocator() {
  // Never destroyed: arrays of other threads may be freed later.
  static auto& throwing = *new Throwing(of_mlx());
  return throwing;
}

} // namespace mlx::core::allocator
