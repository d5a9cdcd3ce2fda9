// Machine code for the GPU that is present.
#pragma once

#include <string>

#include "gpu_kernel.h"

namespace metal_rpc {

// What MLX is given as the compiled source of a launch: a few words, whose machine code lies in the
// folder where MLX looks for it first. nvrtc puts it there the first time that a program is seen.
const std::string& machine_code(const Launch& launch);

// Whether `name` is an entry point that was compiled here, of a kernel that waits for what the kernels
// before it have written (AWAIT_EARLIER).
bool awaits_earlier(const std::string& name);

} // namespace metal_rpc
