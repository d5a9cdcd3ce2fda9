// Fibers of one threadgroup, for cpu.h.
#pragma once

#include <sys/mman.h>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <new>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__x86_64__)
// Saves what a called function must keep and the stack pointer, and continues on another stack.
extern "C" void metal_rpc_switch_fiber(void** save, void* to);
#endif

// One threadgroup at a time; its fibers keep their stacks from one to the next.
class Group {
 public:
  static constexpr size_t kStackBytes = 64 << 10;
  static constexpr int kLanes = 32;

  int position[3] = {0, 0, 0};
  // What each thread shows the others of its 32: a value, or the elements of two matrices.
  std::vector<uint64_t> exchange;
  std::vector<const float*> left, right;

  static Group& current() {
    static thread_local Group group;
    return group;
  }
  int thread() const {
    return thread_;
  }
  int size() const {
    return size_;
  }

  // Runs `body` once for each of `size` threads, which is a multiple of kLanes.
  void run(int size, const std::function<void()>& body);

  void barrier() {
    hand_over(0, size_);
  }
  void lane_barrier() {
    hand_over(thread_ / kLanes * kLanes, kLanes);
  }

 private:
  struct Fiber {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
    char* stack = nullptr;
    bool is_done = false;
  };

  void hand_over(int first, int count);
  void start(int thread);
  void go(int from, int to);
  static void entry();

  // The last one is the caller of `run`.
  std::vector<Fiber> fibers_;
  const std::function<void()>* body_ = nullptr;
  int thread_ = 0;
  int size_ = 0;
};
