// A node of MLX's graph that runs a kernel of the dialect on a GPU (or, for tests, emulated).

#include "gpu_kernel.h"

#include <memory>
#include <stdexcept>
#include <string_view>

#include "abi.h"
#include "guard.h"
#include "mlx/backend/gpu/device_info.h"
#include "mlx/c/private/array.h"
#include "mlx/c/private/enums.h"
#include "mlx/c/private/stream.h"
#include "mlx/ops.h"
#include "upload.h"

namespace mx = mlx::core;

namespace metal_rpc {

std::string Launch::source() const {
  std::string text = defines;
  for (auto piece : pieces) {
    text += piece;
  }
  return text;
}

namespace {

class GpuKernel : public mx::Primitive {
 public:
  GpuKernel(mx::Stream stream, Launch launch) : Primitive(stream), launch_(std::move(launch)) {}

  const char* name() const override {
    return launch_.name.c_str();
  }
  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    launch(launch_, stream(), inputs, outputs);
  }
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    launch(launch_, stream(), inputs, outputs);
  }

 private:
  Launch launch_;
};

// `array` itself where its memory is known to be in row order, else a node that makes it so.
mx::array in_row_order(const mx::array& array, mx::Stream stream) {
  if (array.status() != mx::array::Status::unscheduled) {
    if (array.flags().row_contiguous) {
      return array;
    }
  } else if (array.has_primitive()) {
    // MLX's products write their results in row order, and do not export their types.
    auto& primitive = array.primitive();
    const std::string_view name = primitive.name();
    if (dynamic_cast<GpuKernel*>(&primitive) || name == "Matmul" || name == "AddMM" ||
        name == "QuantizedMatmul") {
      return array;
    }
  }
  return mx::contiguous(array, false, stream);
}

} // namespace
} // namespace metal_rpc

extern "C" const char* metal_rpc_add_launch(
    const metal_rpc_launch* raw,
    const mlx_array* inputs,
    size_t num_inputs,
    const metal_rpc_output* outputs,
    mlx_array* results,
    size_t num_outputs,
    mlx_stream stream_handle) {
  return guard([&] {
    auto stream = mlx_stream_get_(stream_handle);
    metal_rpc::Launch launch;
    launch.name = raw->name;
    launch.pieces.assign(raw->pieces, raw->pieces + raw->num_pieces);
    launch.defines = raw->defines;
    for (size_t i = 0; i < raw->num_scalars; i++) {
      auto& scalar = raw->scalars[i];
      if (scalar.is_float) {
        launch.scalars.emplace_back(scalar.real);
      } else {
        launch.scalars.emplace_back(scalar.integer);
      }
    }
    std::copy(raw->groups, raw->groups + 3, launch.groups);
    launch.threads = raw->threads;

    std::vector<mx::array> in;
    in.reserve(num_inputs);
    for (size_t i = 0; i < num_inputs; i++) {
      in.push_back(metal_rpc::in_row_order(mlx_array_get_(inputs[i]), stream));
    }
    std::vector<mx::Shape> shapes;
    std::vector<mx::Dtype> dtypes;
    for (size_t i = 0; i < num_outputs; i++) {
      auto& output = outputs[i];
      launch.alias_of.push_back(output.alias_of);
      if (output.alias_of >= 0) {
        shapes.push_back(in.at(output.alias_of).shape());
        dtypes.push_back(in.at(output.alias_of).dtype());
      } else {
        shapes.emplace_back(output.shape, output.shape + output.ndim);
        dtypes.push_back(mlx_dtype_to_cpp(output.dtype));
      }
    }
    auto node = std::make_shared<metal_rpc::GpuKernel>(stream, std::move(launch));
    auto made = mx::array::make_arrays(std::move(shapes), dtypes, node, in);
    for (size_t i = 0; i < num_outputs; i++) {
      mlx_array_set_(results[i], std::move(made[i]));
    }
  });
}

extern "C" const char* metal_rpc_is_gpu(bool* result, mlx_stream stream) {
  return guard([&] { *result = mlx_stream_get_(stream).device == mx::Device::gpu; });
}

extern "C" const char* metal_rpc_gpu_memory(size_t* size_bytes) {
  return guard([&] {
    *size_bytes = 0;
    if (!mx::gpu::is_available()) {
      return;
    }
    auto& info = mx::gpu::device_info();
    // Metal's and CUDA's name of it.
    for (auto key : {"memory_size", "total_memory"}) {
      if (auto found = info.find(key); found != info.end()) {
        *size_bytes = std::get<size_t>(found->second);
      }
    }
  });
}

extern "C" const char* metal_rpc_upload(
    mlx_array* result,
    bool* is_uploaded,
    const int* values,
    const int* shape,
    size_t ndim,
    mlx_stream stream) {
  return guard([&] {
    auto array =
        metal_rpc::uploaded(values, mx::Shape(shape, shape + ndim), mlx_stream_get_(stream));
    *is_uploaded = array.has_value();
    if (array) {
      mlx_array_set_(*result, std::move(*array));
    }
  });
}

extern "C" const char* metal_rpc_pinned_array(
    mlx_array* result,
    bool* is_pinned,
    const int* shape,
    size_t ndim) {
  return guard([&] {
    auto array = metal_rpc::pinned_array(nullptr, mx::Shape(shape, shape + ndim));
    *is_pinned = array.has_value();
    if (array) {
      mlx_array_set_(*result, std::move(*array));
    }
  });
}
