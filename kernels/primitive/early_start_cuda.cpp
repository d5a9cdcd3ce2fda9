// What CUDA calls programmatic dependent launch, as edges of a graph.
//
// A capture has each kernel start when the one before has ended and its writes are seen: some
// microseconds, of which a step has hundreds. A kernel that waits by itself may come earlier, and
// does meanwhile what needs no other's writes.

#include "early_start_cuda.h"

#include <string>
#include <vector>

#include "compile_cuda.h"
#include "cuda_driver.h"

namespace metal_rpc {
namespace {

// CUgraphEdgeData of cuda.h, and the values that are used.
struct EdgeData {
  unsigned char from_port;
  unsigned char to_port;
  unsigned char type;
  unsigned char reserved[5];
};
constexpr unsigned char kProgrammaticPort = 1;
constexpr unsigned char kProgrammaticType = 1;

constexpr int kKernelNode = 0;

// CUDA_KERNEL_NODE_PARAMS of cuda.h, version 2.
struct KernelParams {
  void* function;
  unsigned grid[3];
  unsigned block[3];
  unsigned shared_bytes;
  void** arguments;
  void** extra;
  void* kernel;
  void* context;
};

// CUlaunchAttributeValue of cuda.h, and the attribute that is set: the part of a core's memory that
// threadgroups get, in percent of the most that they can have.
union alignas(8) AttributeValue {
  char size[64];
  unsigned carveout;
};
constexpr int kCarveoutAttribute = 14;

// Threadgroups with this much want most of it.
constexpr int kMuchSharedBytes = 20 << 10;

bool is_kernel(void* node) {
  int type = 0;
  call_driver("cuGraphNodeGetType", node, &type);
  return type == kKernelNode;
}

void* function_of(void* node) {
  KernelParams params{};
  call_driver("cuGraphKernelNodeGetParams_v2", node, &params);
  return params.function;
}

bool waits(void* node) {
  auto function = function_of(node);
  // Kernels of the dialect are functions of modules; others may be of libraries.
  using GetName = int(const char**, void*);
  const char* name = nullptr;
  if (function == nullptr ||
      reinterpret_cast<GetName*>(driver_function("cuFuncGetName"))(&name, function) != 0) {
    return false;
  }
  return awaits_earlier(name);
}

bool shares_much(void* node) {
  constexpr int kSharedSizeBytes = 1;
  int size_bytes = 0;
  call_driver("cuFuncGetAttribute", &size_bytes, kSharedSizeBytes, function_of(node));
  return size_bytes >= kMuchSharedBytes;
}

// A core divides its memory anew between kernels that want it divided otherwise, and is idle for it:
// where the second one wants much, both get it divided in the same way.
void divide_memory_alike(void* first, void* second) {
  if (!shares_much(second)) {
    return;
  }
  AttributeValue value{};
  value.carveout = 100;
  for (auto node : {first, second}) {
    call_driver(
        "cuGraphKernelNodeSetAttribute",
        node,
        kCarveoutAttribute,
        static_cast<const AttributeValue*>(&value));
  }
}

} // namespace

void start_early(void* graph) {
  using Nodes = void**;
  size_t count = 0;
  call_driver(
      "cuGraphGetEdges_v2",
      graph,
      static_cast<Nodes>(nullptr),
      static_cast<Nodes>(nullptr),
      static_cast<EdgeData*>(nullptr),
      &count);
  std::vector<void*> from(count);
  std::vector<void*> to(count);
  std::vector<EdgeData> edges(count);
  call_driver("cuGraphGetEdges_v2", graph, from.data(), to.data(), edges.data(), &count);
  size_t num_early = 0;
  for (size_t i = 0; i < count; i++) {
    if (edges[i].type == 0 && is_kernel(from[i]) && is_kernel(to[i]) && waits(to[i])) {
      divide_memory_alike(from[i], to[i]);
      from[num_early] = from[i];
      to[num_early] = to[i];
      edges[num_early] = edges[i];
      num_early++;
    }
  }
  if (num_early == 0) {
    return;
  }
  call_driver(
      "cuGraphRemoveDependencies_v2", graph, from.data(), to.data(), edges.data(), num_early);
  edges.assign(num_early, EdgeData{kProgrammaticPort, 0, kProgrammaticType, {}});
  call_driver("cuGraphAddDependencies_v2", graph, from.data(), to.data(), edges.data(), num_early);
}

} // namespace metal_rpc
