// Kernels of the dialect, run by fibers on MLX's CPU stream: the feature `emulation`, for tests.

#include "../dialect/emulated.h"
#include "gpu_kernel.h"

#include <stdexcept>

#include "mlx/backend/cpu/encoder.h"

namespace mx = mlx::core;

namespace metal_rpc {

void launch(
    const Launch& launch,
    mx::Stream stream,
    const std::vector<mx::array>& inputs,
    std::vector<mx::array>& outputs) {
  auto& encoder = mx::cpu::get_command_encoder(stream);
  std::vector<void*> arrays;
  for (auto& input : inputs) {
    encoder.set_input_array(input);
    arrays.push_back(const_cast<char*>(input.data<char>()));
  }
  for (size_t i = 0; i < outputs.size(); i++) {
    if (int input = launch.alias_of[i]; input >= 0) {
      outputs[i].copy_shared_buffer(inputs[input]);
    } else {
      outputs[i].set_data(mx::allocator::malloc(outputs[i].nbytes()));
      arrays.push_back(outputs[i].data<char>());
    }
    encoder.set_output_array(outputs[i]);
  }
  auto kernel = emulated_kernel(launch.name);
  encoder.dispatch([kernel, launch, arrays = std::move(arrays)] {
    std::vector<Scalar> scalars = launch.scalars;
    std::vector<const void*> arguments;
    for (auto& array : arrays) {
      arguments.push_back(&array);
    }
    for (auto& scalar : scalars) {
      std::visit([&](auto& value) { arguments.push_back(&value); }, scalar);
    }
    if (!launch.is_empty()) {
      emulate(kernel, arguments, launch.groups, launch.threads);
    }
  });
}

} // namespace metal_rpc
