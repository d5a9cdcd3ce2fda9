// A step's launches, recorded once and started again with other numbers.
#pragma once

#include <memory>
#include <vector>

#include "evaluation.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace metal_rpc {

// A run that has begun. Its results are int32 arrays in memory of the host.
struct Begun {
  std::vector<mlx::core::array> results;
  Evaluation evaluation;
};

// One recording. Only the thread of its stream may touch it.
class Recording {
 public:
  virtual ~Recording() = default;

  // What recorded launches read the numbers of a run from: `[n]` int32.
  virtual mlx::core::array numbers() const = 0;

  // Evaluates `outputs`, records how, and runs it with `values`. The first `num_results` of them are
  // its results.
  virtual Begun record(
      const int* values,
      const std::vector<mlx::core::array>& outputs,
      size_t num_results) = 0;

  // Whether it can be run again.
  virtual bool is_complete() const = 0;

  // Runs it with other values.
  virtual Begun replay(const int* values) = 0;
};

// A recording for runs that are told `num_numbers` numbers; none where nothing can be recorded.
std::unique_ptr<Recording> new_recording(size_t num_numbers, mlx::core::Stream stream);
std::unique_ptr<Recording> new_host_recording(size_t num_numbers, mlx::core::Stream stream);
std::unique_ptr<Recording> new_gpu_recording(size_t num_numbers, mlx::core::Stream stream);

// The next evaluation on this stream uses no memory twice, as one that is recorded does: memory for
// that is at hand afterwards.
void rehearse(mlx::core::Stream stream);

} // namespace metal_rpc
