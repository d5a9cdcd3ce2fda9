// Kernels of the dialect on MLX's Metal backend.

#include "gpu_kernel.h"

#include "mlx/backend/metal/device.h"

namespace mx = mlx::core;

namespace metal_rpc {

void launch(
    const Launch& launch,
    mx::Stream stream,
    const std::vector<mx::array>& inputs,
    std::vector<mx::array>& outputs) {
  if (stream.device != mx::Device::gpu) {
    throw std::invalid_argument("kernel " + launch.name + " was put on a CPU stream");
  }
  for (size_t i = 0; i < outputs.size(); i++) {
    if (int input = launch.alias_of[i]; input >= 0) {
      outputs[i].copy_shared_buffer(inputs[input]);
    } else {
      outputs[i].set_data(mx::allocator::malloc(outputs[i].nbytes()));
    }
  }
  if (launch.is_empty()) {
    return;
  }
  auto& device = mx::metal::device(stream.device);
  auto library = device.get_library(launch.name, [&] { return launch.source(); });
  auto& encoder = mx::metal::get_command_encoder(stream);
  encoder.set_compute_pipeline_state(device.get_kernel(launch.name, library));
  int index = 0;
  for (auto& input : inputs) {
    encoder.set_input_array(input, index++);
  }
  for (size_t i = 0; i < outputs.size(); i++) {
    // What is written in place is bound once, as an output: MLX then orders it among its readers.
    const int input = launch.alias_of[i];
    encoder.set_output_array(outputs[i], input >= 0 ? input : index++);
  }
  for (auto& scalar : launch.scalars) {
    std::visit([&](auto value) { encoder.set_bytes(value, index++); }, scalar);
  }
  encoder.dispatch_threadgroups(
      MTL::Size(launch.groups[0], launch.groups[1], launch.groups[2]),
      MTL::Size(launch.threads, 1, 1));
}

} // namespace metal_rpc
