// The kernels of dialect/variants.txt as functions of this process.
#pragma once

#include <string>
#include <vector>

namespace metal_rpc {

// Calls a kernel's function. `arguments` point at its parameters, in their order.
using EmulatedKernel = void (*)(const std::vector<const void*>& arguments);

// Throws std::invalid_argument if `name` is not in dialect/variants.txt.
EmulatedKernel emulated_kernel(const std::string& name);

// Runs all threadgroups, one after the other.
void emulate(
    EmulatedKernel kernel,
    const std::vector<const void*>& arguments,
    const int groups[3],
    int threads);

} // namespace metal_rpc
