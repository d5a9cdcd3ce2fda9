// A node of MLX's graph that runs one of our host kernels.
//
// Every kernel of this crate is the same node with another function pointer, so this file is all
// that has to follow MLX's changes. The node allocates (or aliases) its outputs when MLX schedules
// it and leaves the work to the stream's thread, in order with MLX's own operations.
//
// In place: an aliased output takes the input's buffer whoever else still holds the input. MLX's
// own rule (donation) would copy the whole buffer when a step is built while the last one runs,
// because the evaluator itself keeps inputs alive until their task is done. The price is that the
// old array shows the new contents; the owner must keep one handle and replace it by the output.

#include "host_kernel.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "evaluation.h"
#include "guard.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/c/private/array.h"
#include "mlx/c/private/enums.h"
#include "mlx/c/private/stream.h"
#include "mlx/ops.h"

namespace mx = mlx::core;

namespace metal_rpc {
namespace {

thread_local HostListener* listener = nullptr;

metal_rpc_view view(const mx::array& array) {
  return {const_cast<char*>(array.data<char>()), array.nbytes()};
}

class HostKernel : public mx::Primitive {
 public:
  HostKernel(mx::Stream stream, std::shared_ptr<const HostCall> call, std::vector<int> alias_of)
      : Primitive(stream), call_(std::move(call)), alias_of_(std::move(alias_of)) {}

  const char* name() const override {
    return call_->name;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    std::vector<metal_rpc_view> in, out;
    in.reserve(inputs.size());
    out.reserve(outputs.size());
    for (auto& input : inputs) {
      encoder.set_input_array(input);
      in.push_back(view(input));
    }
    for (size_t i = 0; i < outputs.size(); i++) {
      if (alias_of_[i] >= 0) {
        outputs[i].copy_shared_buffer(inputs[alias_of_[i]]);
      } else {
        outputs[i].set_data(mx::allocator::malloc(outputs[i].nbytes()));
      }
      encoder.set_output_array(outputs[i]);
      out.push_back(view(outputs[i]));
    }
    if (listener != nullptr) {
      listener->scheduled(call_, inputs, outputs);
    }
    note_host_work(stream());
    encoder.dispatch([call = call_, in = std::move(in), out = std::move(out)]() mutable {
      (*call)(in, out);
    });
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::logic_error(std::string("host kernel ") + call_->name + " was put on a GPU stream");
  }

 private:
  std::shared_ptr<const HostCall> call_;
  std::vector<int> alias_of_;
};

// Where host kernels run when the caller's stream is a GPU's: MLX then moves arrays and waits. What
// is on its way already is waited for here, because MLX looks at its memory at once.
mx::Stream host_stream(mx::Stream stream, const mlx_array* inputs, size_t num_inputs) {
  if (stream.device == mx::Device::cpu) {
    return stream;
  }
  for (size_t i = 0; i < num_inputs; i++) {
    auto& input = mlx_array_get_(inputs[i]);
    if (input.status() != mx::array::Status::unscheduled) {
      input.wait();
    }
  }
  return mx::default_stream(mx::Device::cpu);
}

// Whether the memory of `array` is known to be in row order.
bool is_in_row_order(const mx::array& array) {
  if (array.status() != mx::array::Status::unscheduled) {
    return array.flags().row_contiguous;
  }
  if (!array.has_primitive()) {
    return false;
  }
  if (is_host_kernel(array.primitive())) {
    return true;
  }
  // It shares the memory of what is in row order. (MLX does not export its type.)
  return std::strcmp(array.primitive().name(), "Reshape") == 0 &&
      is_in_row_order(array.inputs()[0]);
}

// `array` itself, or a node that puts it into row order.
mx::array in_row_order(const mx::array& array, mx::Stream stream) {
  return is_in_row_order(array) ? array : mx::contiguous(array, false, stream);
}

} // namespace

void HostCall::operator()(
    const std::vector<metal_rpc_view>& inputs,
    std::vector<metal_rpc_view>& outputs) const {
  if (has_failed()) {
    return;
  }
  char error[512] = "";
  if (!run(
          params.get(),
          inputs.data(),
          inputs.size(),
          outputs.data(),
          outputs.size(),
          error,
          sizeof(error))) {
    note_failure(std::string(name) + ": " + error);
  }
}

bool is_host_kernel(const mx::Primitive& primitive) {
  return dynamic_cast<const HostKernel*>(&primitive) != nullptr;
}

HostListener::HostListener() {
  listener = this;
}

HostListener::~HostListener() {
  listener = nullptr;
}

} // namespace metal_rpc

extern "C" const char* metal_rpc_add_node(
    const metal_rpc_kernel* kernel,
    const mlx_array* inputs,
    size_t num_inputs,
    const metal_rpc_output* outputs,
    mlx_array* results,
    size_t num_outputs,
    mlx_stream stream_handle) {
  return guard([&] {
    auto stream = metal_rpc::host_stream(mlx_stream_get_(stream_handle), inputs, num_inputs);
    auto params = std::make_unique<std::byte[]>(kernel->params_size_bytes);
    std::memcpy(params.get(), kernel->params, kernel->params_size_bytes);
    auto call = std::make_shared<const metal_rpc::HostCall>(kernel->name, kernel->run, std::move(params), kernel->is_repeatable);

    std::vector<mx::array> in;
    in.reserve(num_inputs);
    for (size_t i = 0; i < num_inputs; i++) {
      in.push_back(metal_rpc::in_row_order(mlx_array_get_(inputs[i]), stream));
    }
    std::vector<int> alias_of;
    std::vector<mx::Shape> shapes;
    std::vector<mx::Dtype> dtypes;
    for (size_t i = 0; i < num_outputs; i++) {
      auto& output = outputs[i];
      alias_of.push_back(output.alias_of);
      if (output.alias_of >= 0) {
        shapes.push_back(in.at(output.alias_of).shape());
        dtypes.push_back(in.at(output.alias_of).dtype());
      } else {
        shapes.emplace_back(output.shape, output.shape + output.ndim);
        dtypes.push_back(mlx_dtype_to_cpp(output.dtype));
      }
    }
    auto node = std::make_shared<metal_rpc::HostKernel>(stream, std::move(call), std::move(alias_of));
    auto made = mx::array::make_arrays(std::move(shapes), dtypes, node, in);
    for (size_t i = 0; i < num_outputs; i++) {
      mlx_array_set_(results[i], std::move(made[i]));
    }
  });
}
