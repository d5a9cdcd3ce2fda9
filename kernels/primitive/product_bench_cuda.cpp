#include "product_bench_cuda.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <random>

#include "cuda_driver.h"

namespace metal_rpc {
namespace {

// How many of cuBLAS's kernels are looked at.
constexpr int kNumRanked = 8;

// cublasLtMatrixLayoutAttribute_t and cublasLtMatmulDescAttributes_t, as far as they are used.
enum LayoutAttribute { kType, kOrder, kRows, kColumns, kStride, kBatch };
enum DescriptionAttribute { kCompute, kScale, kPointers, kTransposeA, kTransposeB };
constexpr int kEpilogue = 7;

using GetAttribute = int(void*, int, void*, size_t, size_t*);

template <typename T>
int64_t attribute(GetAttribute* get, void* object, int which) {
  T value{};
  size_t written = 0;
  if (get(object, which, &value, sizeof(value), &written) != 0) {
    throw std::runtime_error("cublasLt does not know attribute " + std::to_string(which));
  }
  return static_cast<int64_t>(value);
}

int64_t of_layout(void* layout, LayoutAttribute which) {
  static auto get = cublas<GetAttribute>("cublasLtMatrixLayoutGetAttribute");
  return which == kRows || which == kColumns || which == kStride
      ? attribute<int64_t>(get, layout, which)
      : attribute<int32_t>(get, layout, which);
}

int64_t of_description(void* description, int which) {
  static auto get = cublas<GetAttribute>("cublasLtMatmulDescGetAttribute");
  return attribute<int32_t>(get, description, which);
}

// Of CUDA_R_32F, CUDA_R_16F and CUDA_R_16BF; of others none.
size_t size_of_type(int64_t type) {
  return type == 0 ? 4 : type == 2 || type == 14 ? 2 : 0;
}

size_t size_of(void* layout) {
  const size_t size = of_layout(layout, kStride) * of_layout(layout, kColumns) *
      size_of_type(of_layout(layout, kType));
  constexpr size_t kAligned = 256;
  return (size + kAligned - 1) / kAligned * kAligned;
}

class Memory {
 public:
  explicit Memory(size_t size_bytes) {
    call_driver("cuMemAlloc_v2", &data_, std::max<size_t>(size_bytes, 256));
  }
  ~Memory() {
    reinterpret_cast<int (*)(char*)>(driver_function("cuMemFree_v2"))(data_);
  }
  Memory(const Memory&) = delete;

  char* at(size_t offset) const {
    return data_ + offset;
  }

  // Numbers as weights are: how long a product takes depends on them, and most on zeros.
  void fill(size_t size_bytes) {
    std::mt19937 random(0);
    std::normal_distribution<float> weight(0, 0.02);
    std::vector<uint16_t> some(std::min<size_t>(size_bytes, 4 << 20) / sizeof(uint16_t));
    for (auto& number : some) {
      // The upper half of a float is a bfloat16, and as a float16 no infinity.
      number = std::bit_cast<uint32_t>(weight(random)) >> 16;
    }
    size_t filled = some.size() * sizeof(uint16_t);
    call_driver("cuMemcpyHtoD_v2", data_, static_cast<const void*>(some.data()), filled);
    while (filled < size_bytes) {
      const size_t more = std::min(filled, size_bytes - filled);
      call_driver("cuMemcpyDtoD_v2", data_ + filled, data_, more);
      filled += more;
    }
  }

 private:
  char* data_ = nullptr;
};

// A stream with two events, and what was captured on it.
class Timer {
 public:
  Timer() {
    constexpr unsigned kNonBlocking = 1;
    call_driver("cuStreamCreate", &stream_, kNonBlocking);
    for (auto& event : events_) {
      call_driver("cuEventCreate", &event, 0U);
    }
  }
  ~Timer() {
    for (auto graph : graphs_) {
      destroy("cuGraphExecDestroy", graph);
    }
    for (auto event : events_) {
      destroy("cuEventDestroy_v2", event);
    }
    destroy("cuStreamDestroy_v2", stream_);
  }
  Timer(const Timer&) = delete;

  // Captures what `launch` puts on the stream; it says whether it could.
  template <typename Launch>
  void capture(Launch launch) {
    constexpr int kRelaxed = 2;
    call_driver("cuStreamBeginCapture_v2", stream_, kRelaxed);
    const bool is_launched = launch(stream_);
    void* graph = nullptr;
    call_driver("cuStreamEndCapture", stream_, &graph);
    void* executable = nullptr;
    if (is_launched) {
      call_driver("cuGraphInstantiateWithFlags", &executable, graph, 0ULL);
    }
    destroy("cuGraphDestroy", graph);
    graphs_.push_back(executable);
  }

  // How long each of the captures runs, in milliseconds.
  std::vector<float> times(int num_rounds) const {
    std::vector<float> times(graphs_.size(), std::numeric_limits<float>::infinity());
    for (int round = 0; round < num_rounds; round++) {
      for (size_t i = 0; i < graphs_.size(); i++) {
        if (graphs_[i] != nullptr) {
          times[i] = std::min(times[i], time(graphs_[i]));
        }
      }
    }
    return times;
  }

 private:
  float time(void* graph) const {
    call_driver("cuEventRecord", events_[0], stream_);
    call_driver("cuGraphLaunch", graph, stream_);
    call_driver("cuEventRecord", events_[1], stream_);
    call_driver("cuEventSynchronize", events_[1]);
    float milliseconds = 0;
    call_driver("cuEventElapsedTime", &milliseconds, events_[0], events_[1]);
    return milliseconds;
  }

  static void destroy(const char* name, void* object) {
    if (object != nullptr) {
      reinterpret_cast<int (*)(void*)>(driver_function(name))(object);
    }
  }

  void* stream_ = nullptr;
  void* events_[2] = {};
  std::vector<void*> graphs_;
};

size_t cache_bytes() {
  constexpr int kL2CacheSize = 38;
  int size_bytes = 0;
  call_driver("cuDeviceGetAttribute", &size_bytes, kL2CacheSize, 0);
  return size_bytes;
}

} // namespace

std::vector<int64_t> Product::numbers() const {
  std::vector<int64_t> numbers;
  for (auto layout : {a, b, c, d}) {
    if (size_of_type(of_layout(layout, kType)) == 0 || of_layout(layout, kBatch) != 1) {
      return {};
    }
    for (auto which : {kType, kOrder, kRows, kColumns, kStride}) {
      numbers.push_back(of_layout(layout, which));
    }
  }
  if (of_description(description, kPointers) != 0) {
    return {};
  }
  for (int which : {int(kCompute), int(kScale), int(kTransposeA), int(kTransposeB), kEpilogue}) {
    numbers.push_back(of_description(description, which));
  }
  return numbers;
}

uint64_t Product::num_rows() const {
  return of_layout(d, kColumns);
}

std::string Product::device() {
  char name[256] = {};
  call_driver("cuDeviceGetName", static_cast<char*>(name), int(sizeof(name)), 0);
  return name;
}

int Product::rank(int wanted, Choice* choices, int* count) const {
  using Rank = int(void*, void*, void*, void*, void*, void*, void*, int, Choice*, int*);
  static auto rank = cublas<Rank>("cublasLtMatmulAlgoGetHeuristic");
  return rank(handle, description, a, b, c, d, preference, wanted, choices, count);
}

std::vector<Choice> Product::ranked() const {
  std::vector<Choice> choices(kNumRanked);
  int count = 0;
  if (rank(kNumRanked, choices.data(), &count) != 0) {
    count = 0;
  }
  choices.resize(count);
  return choices;
}

bool Product::takes(const Algorithm& algorithm, Choice& choice) const {
  using Check = int(void*, void*, void*, void*, void*, void*, const Algorithm*, Choice*);
  auto check = cublas<Check>("cublasLtMatmulAlgoCheck");
  if (check(handle, description, a, b, c, d, &algorithm, &choice) != 0) {
    return false;
  }
  choice.algorithm = algorithm;
  choice.status = 0;
  return true;
}

std::vector<float> measure(const Product& product, const std::vector<Choice>& choices) {
  using Multiply = int(
      void*, void*, const float*, const char*, void*, const char*, void*, const float*,
      const char*, void*, char*, void*, const Algorithm*, char*, size_t, void*);
  static auto multiply = cublas<Multiply>("cublasLtMatmul");
  constexpr size_t kReadBytes = size_t(2) << 30;
  constexpr int kNumRounds = 6;
  // Weights come from memory, not from the cache, as in a step.
  const size_t weights_bytes = size_of(product.a);
  const size_t num_weights = 1 + 2 * cache_bytes() / weights_bytes;
  const size_t num_turns = std::clamp<size_t>(kReadBytes / weights_bytes, 4, 32);
  size_t workspace_bytes = 0;
  for (auto& choice : choices) {
    workspace_bytes = std::max(workspace_bytes, choice.workspace_bytes);
  }
  Memory weights(num_weights * weights_bytes);
  Memory rows(size_of(product.b));
  Memory results(size_of(product.d));
  Memory workspace(workspace_bytes);
  weights.fill(num_weights * weights_bytes);
  rows.fill(size_of(product.b));
  // What runs beside it would be measured, too.
  call_driver("cuCtxSynchronize");
  Timer timer;
  for (auto& choice : choices) {
    timer.capture([&](void* stream) {
      const float one = 1;
      const float zero = 0;
      bool is_launched = true;
      for (size_t i = 0; i < num_turns; i++) {
        is_launched &= multiply(
                           product.handle, product.description, &one,
                           weights.at(i % num_weights * weights_bytes), product.a, rows.at(0),
                           product.b, &zero, results.at(0), product.d, results.at(0), product.d,
                           &choice.algorithm, workspace.at(0), choice.workspace_bytes,
                           stream) == 0;
      }
      return is_launched;
    });
  }
  return timer.times(kNumRounds);
}

} // namespace metal_rpc
