// Kernels of a recorded graph that start before those in front of them have ended.
#pragma once

namespace metal_rpc {

// Has kernels of the dialect that wait by themselves (AWAIT_EARLIER) start as soon as the kernel in
// front of them lets them. `graph`: a CUgraph without allocations, not yet instantiated.
void start_early(void* graph);

} // namespace metal_rpc
