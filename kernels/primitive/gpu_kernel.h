// A node of MLX's graph that runs a kernel of the dialect, and what its launchers have to do.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "mlx/primitives.h"

namespace metal_rpc {

// A constant of a launch.
using Scalar = std::variant<int, float>;

// One kernel, with everything but its arrays.
struct Launch {
  // Entry point, one for each variant of a kernel.
  std::string name;
  // Program in the dialect, in pieces that live for ever: prelude, common words, kernel.
  std::vector<const char*> pieces;
  // What makes the variant, as lines for the preprocessor; they come first.
  std::string defines;
  std::vector<Scalar> scalars;
  int groups[3];
  int threads;
  // By output: the input whose memory it is, or a negative number for fresh memory.
  std::vector<int> alias_of;

  bool is_empty() const {
    return groups[0] == 0 || groups[1] == 0 || groups[2] == 0;
  }
  // The whole program.
  std::string source() const;
};

// Gives the outputs their memory and starts the kernel on the stream's device. The kernel's
// parameters are the inputs, the outputs with fresh memory, then the scalars.
void launch(
    const Launch& launch,
    mlx::core::Stream stream,
    const std::vector<mlx::core::array>& inputs,
    std::vector<mlx::core::array>& outputs);

} // namespace metal_rpc
