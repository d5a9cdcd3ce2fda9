// cuBLAS orders its kernels by a model of the card. For the few rows of a decode its first one is up
// to four percent slower than the best of the first eight, and products are most of a step. So they
// are measured when a step is rehearsed, and the best one is taken from then on. It is kept beside
// the compiled kernels, because kernels may differ in the last bits: every process takes the same.
//
// MLX has no way to choose, but asks cuBLAS for its first kernel, and the dynamic linker looks for a
// function in the executable before it looks in a library. So the definition below is the one that
// libmlx.so calls; kernels/tests/replay.rs fails if it is not.

#include "product_cuda.h"

#include <dlfcn.h>
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>

#include "kernel_folder_cuda.h"
#include "product_bench_cuda.h"

namespace metal_rpc {
namespace {

// Products of more rows do not wait for memory, and come in more shapes than can be measured.
constexpr uint64_t kMostRows = 256;

// A kernel that is this much slower than the best one is as good: cuBLAS's order decides.
constexpr float kAsGood = 1.01;

// Not for ever: `is_measuring` looks whether the evaluation has ended.
thread_local const CommandEncoder* measured_encoder = nullptr;

bool is_measuring() {
  return measured_encoder != nullptr && measured_encoder->node_count < 0;
}

std::string key_of(const Product& product) {
  std::ostringstream key;
  key << product.device() << " cublasLt " << cublas<size_t()>("cublasLtGetVersion")();
  for (auto number : product.numbers()) {
    key << " " << number;
  }
  return key.str();
}

std::filesystem::path file_of(const std::string& key) {
  std::ostringstream name;
  name << "product_" << std::hex << std::hash<std::string>()(key);
  return kernel_folder() / name.str();
}

// What another process has chosen, if cuBLAS still takes it.
std::optional<Choice> kept_choice(const Product& product, const std::string& key) {
  std::ifstream file(file_of(key));
  std::string kept_key;
  Choice choice{};
  if (!std::getline(file, kept_key) || kept_key != key) {
    return std::nullopt;
  }
  Algorithm algorithm{};
  for (auto& word : algorithm.words) {
    file >> word;
  }
  if (!file || !product.takes(algorithm, choice)) {
    return std::nullopt;
  }
  return choice;
}

void keep_choice(const std::string& key, const Choice& choice) {
  std::ostringstream text;
  text << key << "\n";
  for (auto word : choice.algorithm.words) {
    text << word << " ";
  }
  write_file(file_of(key), text.str());
}

std::optional<Choice> measured_choice(const Product& product) {
  auto choices = product.ranked();
  auto times = measure(product, choices);
  if (times.empty()) {
    return std::nullopt;
  }
  const float best = *std::min_element(times.begin(), times.end());
  for (size_t i = 0; i < times.size(); i++) {
    if (times[i] <= best * kAsGood) {
      return choices[i];
    }
  }
  return std::nullopt;
}

// None: cuBLAS's first one. Looked for once, and measured once.
std::optional<Choice> choice_for(const Product& product) {
  static auto& mutex = *new std::mutex;
  static auto& known = *new std::map<std::vector<int64_t>, std::optional<Choice>>;
  if (product.num_rows() > kMostRows) {
    return std::nullopt;
  }
  const auto numbers = product.numbers();
  if (numbers.empty()) {
    return std::nullopt;
  }
  std::lock_guard lock(mutex);
  auto found = known.find(numbers);
  if (found == known.end()) {
    found = known.emplace(numbers, kept_choice(product, key_of(product))).first;
  }
  if (!found->second && is_measuring()) {
    found->second = measured_choice(product);
    if (found->second) {
      keep_choice(key_of(product), *found->second);
    }
  }
  return found->second;
}

} // namespace

void measure_products(const CommandEncoder* encoder) {
  measured_encoder = encoder;
}

} // namespace metal_rpc

// What cublasLt.h declares, under the name and version that libmlx.so asks for.
extern "C" __attribute__((symver("cublasLtMatmulAlgoGetHeuristic@libcublasLt.so.13"))) int
metal_rpc_first_algorithm(
    void* handle,
    void* description,
    void* a,
    void* b,
    void* c,
    void* d,
    void* preference,
    int wanted,
    metal_rpc::Choice* choices,
    int* count) {
  const metal_rpc::Product product{handle, description, a, b, c, d, preference};
  try {
    if (auto choice = wanted == 1 ? metal_rpc::choice_for(product) : std::nullopt) {
      *choices = *choice;
      *count = 1;
      return 0;
    }
  } catch (const std::exception&) {
    // Without a measurement or a file, cuBLAS's first one is what there is.
  }
  return product.rank(wanted, choices, count);
}
