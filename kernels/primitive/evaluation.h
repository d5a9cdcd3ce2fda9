// Evaluations whose failures are known for certain.
//
// MLX has one error for a stream, and tells it to whoever looks first. The thread that builds the
// next step upon a result looks too: the one that waits for the result then takes it for whole. So:
//
// - A host kernel does not throw into MLX's scheduler. Its failure is noted on the stream's thread,
//   and taken from there in the stream's order by the evaluation that it belongs to.
// - What MLX tells of its own operations, or of a GPU, may be of any evaluation that the thread has
//   started and nobody has waited for. It counts for all of them, and for none that starts later.
#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace metal_rpc {

// Whether a host kernel has failed that runs on the stream of this thread, in the evaluation that it
// is at. What comes after it has nothing to work on.
bool has_failed();

// A host kernel on the stream of this thread has failed.
void note_failure(std::string reason);

// The calling thread has given a host kernel to `stream`.
void note_host_work(mlx::core::Stream stream);

// What MLX has told of the evaluations of a thread.
struct Told;

// What a thread has begun to compute. Any other thread may wait for it.
class Evaluation {
 public:
  // Starts it.
  explicit Evaluation(const std::vector<mlx::core::array>& outputs);

  // Blocks until it is done, and throws if it is not whole. To be called once.
  void wait();

 private:
  // Takes what MLX has to tell of earlier evaluations on this stream, where it can be asked.
  void look_at(mlx::core::Stream stream);
  void take_end_of_gpu();
  void take_events(const std::vector<mlx::core::array>& outputs);
  void wait_for_mlx();

  // When each stream is done: why its host kernels failed, or nothing.
  std::vector<std::future<std::string>> ends_;
  // Arrays of nothing, with the events of the outputs: handles are not shared between threads.
  std::vector<mlx::core::array> outputs_;
  std::optional<mlx::core::Stream> gpu_;
  std::shared_ptr<Told> told_;
  uint64_t num_told_;
};

} // namespace metal_rpc
