// What MLX's CUDA backend has on a stream, as far as we look into it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace metal_rpc {

// The beginning of mlx::core::cu::CommandEncoder (mlx/backend/cuda/device.h of 0.32.2), which needs
// the toolkit's headers. MLX's own graphs are off: what is evaluated is launched at once, in order.
struct CommandEncoder {
  void* device;
  void* stream;
  void* graph;
  std::shared_ptr<void> worker;
  // Launches since the last commit; MLX commits when there are many.
  int node_count;
  bool in_concurrent;
  std::vector<void*> from_nodes;
  std::vector<void*> to_nodes;
  std::string graph_nodes_key;
  std::string graph_deps_key;
  std::vector<char> concurrent_nodes;
  // What is kept until the launches since the last commit have run.
  std::vector<std::shared_ptr<mlx::core::array::Data>> temporaries;

  // Has nothing committed, and so no memory used twice, before the evaluation ends.
  void commit_at_the_end();
};

CommandEncoder& command_encoder(mlx::core::Stream stream);

} // namespace metal_rpc
