// Numbers of the host on their way to a GPU.
#pragma once

#include <optional>

#include "mlx/array.h"

namespace metal_rpc {

// An array of `shape` over memory of the host that the GPU reads without moving it, filled with
// `values`; none where MLX's own arrays do that as well.
std::optional<mlx::core::array> pinned_array(const int* values, const mlx::core::Shape& shape);

} // namespace metal_rpc
