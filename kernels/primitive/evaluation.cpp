#include "evaluation.h"

#include <atomic>
#include <mutex>
#include <set>
#include <stdexcept>
#include <utility>

#include "abi.h"
#include "gpu_end.h"
#include "guard.h"
#include "mlx/c/private/array.h"
#include "mlx/primitives.h"
#include "mlx/scheduler.h"
#include "mlx/transforms.h"

namespace mx = mlx::core;

namespace metal_rpc {

struct Told {
  // Held while an evaluation is started: MLX may tell it what is another one's.
  std::mutex starting;
  std::atomic<uint64_t> num_errors = 0;
};

namespace {

thread_local std::string failure;
thread_local std::set<mx::Stream> streams_with_host_work;
thread_local const auto told = std::make_shared<Told>();

// When the host kernels given to the streams so far are done.
std::vector<std::future<std::string>> ends_of_host_work() {
  std::vector<std::future<std::string>> ends;
  for (auto stream : std::exchange(streams_with_host_work, {})) {
    auto end = std::make_shared<std::promise<std::string>>();
    ends.push_back(end->get_future());
    mx::scheduler::enqueue(
        stream, [end = std::move(end)] { end->set_value(std::exchange(failure, {})); });
  }
  return ends;
}

} // namespace

bool has_failed() {
  return !failure.empty();
}

void note_failure(std::string reason) {
  failure = std::move(reason);
}

void note_host_work(mx::Stream stream) {
  streams_with_host_work.insert(stream);
}

Evaluation::Evaluation(const std::vector<mx::array>& outputs) : told_(told) {
  std::lock_guard lock(told_->starting);
  for (auto& output : outputs) {
    if (output.status() == mx::array::Status::unscheduled && output.has_primitive()) {
      look_at(output.primitive().stream());
    }
  }
  num_told_ = told_->num_errors;
  try {
    mx::async_eval(outputs);
  } catch (...) {
    // A GPU's may be an earlier one's.
    told_->num_errors += gpu_.has_value();
    // What did start is nobody's.
    ends_of_host_work();
    throw;
  }
  ends_ = ends_of_host_work();
  take_end_of_gpu();
  take_events(outputs);
}

void Evaluation::look_at(mx::Stream stream) {
  if (stream.device == mx::Device::gpu) {
    gpu_ = stream;
    return;
  }
  try {
    mx::scheduler::check_error(stream);
  } catch (const std::exception&) {
    told_->num_errors++;
  }
}

void Evaluation::take_end_of_gpu() {
  if (!gpu_) {
    return;
  }
  auto end = std::make_shared<std::promise<std::string>>();
  auto future = end->get_future();
  if (call_at_end(*gpu_, [end = std::move(end)] { end->set_value({}); })) {
    ends_.push_back(std::move(future));
  }
}

void Evaluation::take_events(const std::vector<mx::array>& outputs) {
  for (auto& output : outputs) {
    if (output.event().valid()) {
      mx::array nothing({0}, mx::bool_, nullptr, {});
      nothing.attach_event(output.event());
      nothing.set_status(mx::array::Status::evaluated);
      outputs_.push_back(std::move(nothing));
    }
  }
}

void Evaluation::wait() {
  std::string reason;
  // First: where all are host kernels, this is the last thing that happens.
  for (auto& end : ends_) {
    auto failure = end.get();
    reason = reason.empty() ? failure : reason;
  }
  if (!reason.empty()) {
    throw std::runtime_error(reason);
  }
  wait_for_mlx();
}

void Evaluation::wait_for_mlx() {
  try {
    for (auto& output : outputs_) {
      output.wait();
    }
  } catch (...) {
    told_->num_errors++;
    throw;
  }
  if (gpu_) {
    std::lock_guard lock(told_->starting);
  }
  if (told_->num_errors != num_told_) {
    throw std::runtime_error("the device failed while several evaluations were on their way to it");
  }
}

} // namespace metal_rpc

extern "C" const char* metal_rpc_start(
    void** evaluation,
    const mlx_array* outputs,
    size_t num_outputs) {
  return guard([&] {
    std::vector<mx::array> arrays;
    for (size_t i = 0; i < num_outputs; i++) {
      arrays.push_back(mlx_array_get_(outputs[i]));
    }
    *evaluation = new metal_rpc::Evaluation(arrays);
  });
}

extern "C" const char* metal_rpc_wait_for(void* evaluation) {
  return guard([&] { static_cast<metal_rpc::Evaluation*>(evaluation)->wait(); });
}

extern "C" void metal_rpc_free_evaluation(void* evaluation) {
  delete static_cast<metal_rpc::Evaluation*>(evaluation);
}
