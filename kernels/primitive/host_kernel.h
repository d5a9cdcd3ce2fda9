// What a host kernel is once MLX has scheduled it, and who is told of it.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "abi.h"
#include "mlx/array.h"
#include "mlx/primitives.h"

namespace metal_rpc {

// What the stream's thread calls. It outlives the node, which MLX frees on scheduling.
struct HostCall {
  const char* name;
  metal_rpc_run run;
  std::unique_ptr<std::byte[]> params;
  bool is_repeatable;

  // A failure is that of the Evaluation, of which nothing runs any more.
  void operator()(
      const std::vector<metal_rpc_view>& inputs,
      std::vector<metal_rpc_view>& outputs) const;
};

// Whether it is a host kernel's node.
bool is_host_kernel(const mlx::core::Primitive& primitive);

// Told of the host kernels that its thread schedules while it lives, in their order.
class HostListener {
 public:
  HostListener();
  virtual ~HostListener();
  HostListener(const HostListener&) = delete;
  HostListener& operator=(const HostListener&) = delete;

  // The arrays have their memory.
  virtual void scheduled(
      const std::shared_ptr<const HostCall>& call,
      const std::vector<mlx::core::array>& inputs,
      const std::vector<mlx::core::array>& outputs) = 0;
};

} // namespace metal_rpc
