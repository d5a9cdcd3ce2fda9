// When what a GPU was given has ended, and MLX knows how.
#pragma once

#include <functional>

#include "mlx/stream.h"

namespace metal_rpc {

// Calls `ended` when all that `stream`, a GPU's, was given has ended and MLX knows how. Returns false
// where MLX's events tell as much: nothing is called then.
bool call_at_end(mlx::core::Stream stream, std::function<void()> ended);

} // namespace metal_rpc
