#include "cuda_driver.h"

#include <dlfcn.h>
#include <stdexcept>
#include <string>

namespace metal_rpc {
namespace {

void* symbol(const char* name) {
  static void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  void* found = library ? dlsym(library, name) : nullptr;
  if (found == nullptr) {
    throw std::runtime_error(std::string("libcuda.so.1 has no ") + name + ": " + dlerror());
  }
  return found;
}

// The primary context of the first device is what MLX's runtime uses.
void use_device() {
  static thread_local bool is_current = false;
  if (is_current) {
    return;
  }
  static void* context = [] {
    void* primary = nullptr;
    auto retain = reinterpret_cast<int (*)(void**, int)>(symbol("cuDevicePrimaryCtxRetain"));
    check_driver("cuDevicePrimaryCtxRetain", retain(&primary, 0));
    return primary;
  }();
  auto set = reinterpret_cast<int (*)(void*)>(symbol("cuCtxSetCurrent"));
  check_driver("cuCtxSetCurrent", set(context));
  is_current = true;
}

} // namespace

void* driver_function(const char* name) {
  use_device();
  return symbol(name);
}

void check_driver(const char* name, int status) {
  if (status == 0) {
    return;
  }
  const char* text = nullptr;
  auto describe = reinterpret_cast<int (*)(int, const char**)>(symbol("cuGetErrorString"));
  describe(status, &text);
  throw std::runtime_error(std::string(name) + " failed: " + (text ? text : "unknown error"));
}

} // namespace metal_rpc
