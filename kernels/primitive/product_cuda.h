// Which of cuBLAS's kernels multiply the rows of a step that is recorded.
#pragma once

#include "cuda_stream.h"

namespace metal_rpc {

// Has products of this thread measured, those whose best kernel is not known, until the evaluation
// that is next on this encoder ends. Null: no longer.
void measure_products(const CommandEncoder* encoder);

} // namespace metal_rpc
