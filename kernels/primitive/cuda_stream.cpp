#include "cuda_stream.h"

#include <dlfcn.h>
#include <cstdlib>
#include <limits>
#include <stdexcept>

namespace mx = mlx::core;

namespace metal_rpc {
namespace {

// MLX reads the variable once, and not before main. Its graphs cost the host more than launches do,
// and only know of memory that MLX itself writes; a whole step is recorded instead (replay_cuda.cpp).
const bool has_no_graphs = setenv("MLX_USE_CUDA_GRAPHS", "0", /* overwrite = */ 1) == 0;

} // namespace

void CommandEncoder::commit_at_the_end() {
  node_count = std::numeric_limits<int>::min() / 2;
}

CommandEncoder& command_encoder(mx::Stream stream) {
  using Get = CommandEncoder&(mx::Stream);
  static auto get = reinterpret_cast<Get*>(
      dlsym(RTLD_DEFAULT, "_ZN3mlx4core2cu19get_command_encoderENS0_6StreamE"));
  if (get == nullptr || !has_no_graphs) {
    throw std::runtime_error("MLX has no CUDA backend, or one with graphs of its own");
  }
  return get(stream);
}

} // namespace metal_rpc
