// Kernels of the dialect on MLX's CUDA backend.
//
// MLX exports no way to launch a kernel of one's own on its streams, but its primitive for
// precompiled kernels does that for fresh outputs. A launch here is a call of that primitive, from
// inside ours. It does not know of memory that is written in place, and need not: its graphs are off
// (cuda_stream.cpp), so a stream runs what is launched on it in order.

#include "compile_cuda.h"
#include "cuda_stream.h"
#include "gpu_kernel.h"

#include <cstring>
#include <unordered_map>

#include "mlx/fast.h"

namespace mx = mlx::core;

namespace metal_rpc {
namespace {

// Bound of the remembered primitives; a step has a few hundred, and its sizes change slowly.
constexpr size_t kMaxPrimitives = 8192;

void append(std::string& key, const void* bytes, size_t size) {
  key.append(static_cast<const char*>(bytes), size);
}

// MLX's primitive for this launch. It has no state that a run changes, so it is made once.
mx::Primitive& primitive_of(const Launch& launch, mx::Stream stream, size_t num_inputs) {
  // Never freed: a thread may outlive MLX's backend.
  static thread_local auto& made =
      *new std::unordered_map<std::string, std::shared_ptr<mx::Primitive>>;
  std::string key = launch.name;
  append(key, launch.groups, sizeof(launch.groups));
  append(key, &launch.threads, sizeof(launch.threads));
  append(key, &stream.index, sizeof(stream.index));
  for (auto& scalar : launch.scalars) {
    std::visit([&](auto value) { append(key, &value, sizeof(value)); }, scalar);
  }
  if (auto found = made.find(key); found != made.end()) {
    return *found->second;
  }
  if (made.size() >= kMaxPrimitives) {
    made.clear();
  }
  std::vector<mx::fast::ScalarArg> scalars;
  for (auto& scalar : launch.scalars) {
    std::visit([&](auto value) { scalars.emplace_back(value); }, scalar);
  }
  auto threads = [&](int axis) { return launch.groups[axis] * (axis == 0 ? launch.threads : 1); };
  // Arrays and shapes are those of a run; only the number of inputs is the primitive's own.
  auto arrays = mx::fast::precompiled_cuda_kernel(
      launch.name,
      machine_code(launch),
      std::vector<mx::array>(num_inputs, mx::array(0)),
      {mx::Shape{1}},
      {mx::int32},
      scalars,
      {threads(0), threads(1), threads(2)},
      {launch.threads, 1, 1},
      /* shared_memory = */ 0,
      /* init_value = */ std::nullopt,
      /* ensure_row_contiguous = */ true,
      stream);
  return *made.emplace(std::move(key), arrays[0].primitive_ptr()).first->second;
}

// MLX commits when it has launched this many nodes, and is at most ten commits ahead of the GPU.
// Memory is used again when what was committed with it has run, so large outputs count as more.
constexpr int kNodesOfCommit = 100;
constexpr size_t kBytesOfCommit = 256 << 20;

void count_memory(mx::Stream stream, const std::vector<mx::array>& outputs) {
  size_t size_bytes = 0;
  for (auto& output : outputs) {
    size_bytes += output.nbytes();
  }
  command_encoder(stream).node_count += size_bytes / (kBytesOfCommit / kNodesOfCommit);
}

} // namespace

void launch(
    const Launch& launch,
    mx::Stream stream,
    const std::vector<mx::array>& inputs,
    std::vector<mx::array>& outputs) {
  if (stream.device != mx::Device::gpu) {
    throw std::invalid_argument("kernel " + launch.name + " was put on a CPU stream");
  }
  std::vector<mx::array> fresh;
  for (size_t i = 0; i < outputs.size(); i++) {
    if (int input = launch.alias_of[i]; input >= 0) {
      outputs[i].copy_shared_buffer(inputs[input]);
    } else {
      // A copy of the handle: both show the memory that it is given.
      fresh.push_back(outputs[i]);
    }
  }
  if (launch.is_empty()) {
    for (auto& output : fresh) {
      output.set_data(mx::allocator::malloc(output.nbytes()));
    }
    return;
  }
  primitive_of(launch, stream, inputs.size()).eval_gpu(inputs, fresh);
  count_memory(stream, fresh);
}

} // namespace metal_rpc
