// Recordings as CUDA graphs: MLX launches a step while its stream is captured.
//
// A recorded launch has addresses in it. So a recording keeps all memory that its step used, reads
// the numbers of a run from an array of its own, and copies the results away before the next run.
// Everything is in the order of one stream: runs of recordings, other steps and copies.

#include "replay.h"

#include <cstring>
#include <stdexcept>

#include "cuda_driver.h"
#include "cuda_stream.h"
#include "early_start_cuda.h"
#include "mlx/primitives.h"
#include "mlx/stream.h"
#include "upload.h"

namespace mx = mlx::core;

namespace metal_rpc {
namespace {

constexpr int kCaptureRelaxed = 2;
constexpr int kAllocationNode = 10;

class CudaRecording;

// The node that ends a recording, and the one that runs it again. Inputs: the numbers in pinned
// memory, then what is recorded.
class Run : public mx::Primitive {
 public:
  Run(mx::Stream stream, CudaRecording& recording) : Primitive(stream), recording_(recording) {}

  const char* name() const override {
    return "Recording";
  }
  void eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::logic_error("a recording was put on a CPU stream");
  }
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;

 private:
  // Evaluated before its owner goes on.
  CudaRecording& recording_;
};

class CudaRecording : public Recording {
 public:
  CudaRecording(size_t num_numbers, mx::Stream stream)
      : stream_(stream),
        numbers_(*uploaded(
            std::vector<int>(num_numbers).data(),
            {static_cast<int>(num_numbers)},
            stream)) {}

  ~CudaRecording() override {
    // Its memory goes to others, who need not use this stream.
    mx::synchronize(stream_);
    destroy("cuGraphExecDestroy", executable_);
  }

  mx::array numbers() const override {
    return numbers_;
  }

  bool is_complete() const override {
    return executable_ != nullptr;
  }

  Begun record(
      const int* values,
      const std::vector<mx::array>& outputs,
      size_t num_results) override {
    // What the steps before have used is free then.
    mx::synchronize(stream_);
    results_.assign(outputs.begin(), outputs.begin() + num_results);
    std::vector<mx::array> inputs{*pinned_array(values, numbers_.shape())};
    inputs.insert(inputs.end(), outputs.begin(), outputs.end());
    auto run = node(std::move(inputs));
    auto& encoder = command_encoder(stream_);
    call_driver("cuStreamBeginCapture_v2", encoder.stream, kCaptureRelaxed);
    is_open_ = true;
    encoder.commit_at_the_end();
    try {
      return {run, Evaluation(run)};
    } catch (...) {
      if (is_open_) {
        destroy("cuGraphDestroy", end_capture());
      }
      throw;
    }
  }

  Begun replay(const int* values) override {
    auto run = node({*pinned_array(values, numbers_.shape())});
    return {run, Evaluation(run)};
  }

  // Called by the node, when everything that it depends on was launched.
  void run(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
    auto stream = command_encoder(stream_).stream;
    void* graph = nullptr;
    bool is_kept = true;
    if (is_open_) {
      keep_memory(inputs);
      graph = end_capture();
      is_kept = !allocates(graph);
      if (is_kept) {
        start_early(graph);
      }
      call_driver("cuGraphInstantiateWithFlags", &executable_, graph, 0ULL);
      destroy("cuGraphDestroy", graph);
    }
    call_driver(
        "cuMemcpyHtoDAsync_v2",
        device_address(numbers_.buffer()),
        static_cast<const void*>(device_address(inputs[0].buffer())),
        inputs[0].nbytes(),
        stream);
    call_driver("cuGraphLaunch", executable_, stream);
    for (size_t i = 0; i < outputs.size(); i++) {
      auto& result = results_[i];
      // The handle that is asked for gets the pinned memory.
      outputs[i].copy_shared_buffer(*pinned_array(nullptr, result.shape()));
      call_driver(
          "cuMemcpyDtoHAsync_v2",
          static_cast<void*>(device_address(outputs[i].buffer())),
          device_address(result.buffer()) + result.offset(),
          result.nbytes(),
          stream);
    }
    if (!is_kept) {
      destroy("cuGraphExecDestroy", std::exchange(executable_, nullptr));
      kept_.clear();
    }
  }

 private:
  std::vector<mx::array> node(std::vector<mx::array> inputs) {
    std::vector<mx::Shape> shapes;
    for (auto& result : results_) {
      shapes.push_back(result.shape());
    }
    std::vector<mx::Dtype> dtypes(results_.size(), mx::int32);
    return mx::array::make_arrays(
        std::move(shapes), dtypes, std::make_shared<Run>(stream_, *this), inputs);
  }

  void keep_memory(const std::vector<mx::array>& inputs) {
    kept_ = command_encoder(stream_).temporaries;
    for (auto& input : inputs) {
      kept_.push_back(input.data_shared_ptr());
    }
  }

  void* end_capture() {
    auto& encoder = command_encoder(stream_);
    void* graph = nullptr;
    is_open_ = false;
    encoder.node_count = 0;
    call_driver("cuStreamEndCapture", encoder.stream, &graph);
    return graph;
  }

  // Whether memory was taken from the system meanwhile: it is then given back by others.
  static bool allocates(void* graph) {
    size_t count = 0;
    call_driver("cuGraphGetNodes", graph, static_cast<void**>(nullptr), &count);
    std::vector<void*> nodes(count);
    call_driver("cuGraphGetNodes", graph, nodes.data(), &count);
    for (auto node : nodes) {
      int type = 0;
      call_driver("cuGraphNodeGetType", node, &type);
      if (type == kAllocationNode) {
        return true;
      }
    }
    return false;
  }

  static void destroy(const char* name, void* object) {
    if (object != nullptr) {
      call_driver(name, object);
    }
  }

  mx::Stream stream_;
  mx::array numbers_;
  std::vector<mx::array> results_;
  std::vector<std::shared_ptr<mx::array::Data>> kept_;
  void* executable_ = nullptr;
  bool is_open_ = false;
};

void Run::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  recording_.run(inputs, outputs);
}

} // namespace

std::unique_ptr<Recording> new_gpu_recording(size_t num_numbers, mx::Stream stream) {
  return std::make_unique<CudaRecording>(num_numbers, stream);
}

void rehearse(mx::Stream stream) {
  if (stream.device == mx::Device::gpu) {
    command_encoder(stream).commit_at_the_end();
  }
}

} // namespace metal_rpc
