// The kernels of variants.txt, included one by one in namespaces of their own: build.rs writes the
// list that this file includes.
#include "emulated.h"

#include <stdexcept>
#include <unordered_map>
#include <utility>

// clang-format off
#include "cpu.h"
#include "common.h"
// clang-format on

namespace metal_rpc {
namespace {

template <typename... Arguments, size_t... I>
void call(
    void (*function)(Arguments...),
    const std::vector<const void*>& arguments,
    std::index_sequence<I...>) {
  function(*static_cast<const Arguments*>(arguments.at(I))...);
}

template <auto function>
struct Caller;

template <typename... Arguments, void (*function)(Arguments...)>
struct Caller<function> {
  static void run(const std::vector<const void*>& arguments) {
    if (arguments.size() != sizeof...(Arguments)) {
      throw std::invalid_argument("a launch has not as many arguments as its kernel");
    }
    call(function, arguments, std::index_sequence_for<Arguments...>());
  }
};

#include "emulated_variants.inc"

} // namespace

EmulatedKernel emulated_kernel(const std::string& name) {
  static const std::unordered_map<std::string, EmulatedKernel> kernels = {
#define VARIANT(NAME) {#NAME, &Caller<&variant_##NAME::NAME>::run},
#include "emulated_names.inc"
#undef VARIANT
  };
  auto found = kernels.find(name);
  if (found == kernels.end()) {
    throw std::invalid_argument("kernel " + name + " is not in dialect/variants.txt");
  }
  return found->second;
}

void emulate(
    EmulatedKernel kernel,
    const std::vector<const void*>& arguments,
    const int groups[3],
    int threads) {
  auto& group = Group::current();
  const std::function<void()> body = [&] { kernel(arguments); };
  for (int z = 0; z < groups[2]; z++) {
    for (int y = 0; y < groups[1]; y++) {
      for (int x = 0; x < groups[0]; x++) {
        group.position[0] = x;
        group.position[1] = y;
        group.position[2] = z;
        group.run(threads, body);
      }
    }
  }
}

} // namespace metal_rpc
