// Host and GPU share memory: MLX's own arrays are as good.

#include "upload.h"

namespace mx = mlx::core;

namespace metal_rpc {

std::optional<mx::array> uploaded(const int*, const mx::Shape&, mx::Stream) {
  return std::nullopt;
}

std::optional<mx::array> pinned_array(const int*, const mx::Shape&) {
  return std::nullopt;
}

std::optional<mx::array> staging_array(const mx::Shape&, mx::Dtype) {
  return std::nullopt;
}

std::optional<mx::array> in_device_memory(const mx::array&) {
  return std::nullopt;
}

} // namespace metal_rpc
