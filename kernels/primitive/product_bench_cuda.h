// A product as cuBLAS describes it, and how long its kernels take.
#pragma once

#include <dlfcn.h>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace metal_rpc {

// cublasLtMatmulAlgo_t and cublasLtMatmulHeuristicResult_t of cublasLt.h.
struct Algorithm {
  uint64_t words[8];
};
struct Choice {
  Algorithm algorithm;
  size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
};

// A function of cublasLt, which libmlx.so brings along; the one behind ours, where we have one.
template <typename F>
F* cublas(const char* name) {
  auto found = dlsym(RTLD_NEXT, name);
  if (found == nullptr) {
    throw std::runtime_error(std::string("libcublasLt has no ") + name);
  }
  return reinterpret_cast<F*>(found);
}

// What cuBLAS is asked for: d = a b + c in columns, where a holds weights and b rows.
struct Product {
  void* handle;
  void* description;
  void* a;
  void* b;
  void* c;
  void* d;
  void* preference;

  // Everything that tells it from others; nothing where it is not of a kind that is measured.
  std::vector<int64_t> numbers() const;
  uint64_t num_rows() const;
  // Name of the card.
  static std::string device();

  // cuBLAS's order, at most `wanted` of it.
  int rank(int wanted, Choice* choices, int* count) const;
  std::vector<Choice> ranked() const;
  // Whether an algorithm that was kept can be used; then `choice` is that.
  bool takes(const Algorithm& algorithm, Choice& choice) const;
};

// How long some launches of each kernel take, in milliseconds. Throws if there is no memory for it.
std::vector<float> measure(const Product& product, const std::vector<Choice>& choices);

} // namespace metal_rpc
