// Numbers of the host on their way to a GPU, and back.
#pragma once

#include <optional>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace metal_rpc {

// `values` as an array of `shape` in the GPU's memory, for what is put on `stream` from now on; none
// where MLX's own arrays do as well.
std::optional<mlx::core::array>
uploaded(const int* values, const mlx::core::Shape& shape, mlx::core::Stream stream);

// An array of `shape` over memory of the host that the GPU reaches without moving it, filled with
// `values` unless they are null; none where MLX's own arrays do as well.
std::optional<mlx::core::array> pinned_array(const int* values, const mlx::core::Shape& shape);

// An array of zeros in memory of the host, on its way to `in_device_memory`; none where MLX's own
// arrays do as well.
std::optional<mlx::core::array> staging_array(const mlx::core::Shape& shape, mlx::core::Dtype dtype);

// A copy in the GPU's own memory of an array of the host; none where the array does as well.
std::optional<mlx::core::array> in_device_memory(const mlx::core::array& array);

} // namespace metal_rpc
