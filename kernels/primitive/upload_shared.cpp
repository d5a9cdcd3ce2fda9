// Host and GPU share memory: MLX's own arrays are as good.

#include "upload.h"

namespace metal_rpc {

std::optional<mlx::core::array> pinned_array(const int*, const mlx::core::Shape&) {
  return std::nullopt;
}

} // namespace metal_rpc
