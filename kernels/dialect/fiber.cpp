// Fibers of one threadgroup. See fiber.h.
#include "fiber.h"

#include <cassert>
#include <cstdlib>

#if defined(__x86_64__)
asm(R"(
.text
.globl metal_rpc_switch_fiber
.type metal_rpc_switch_fiber, @function
metal_rpc_switch_fiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size metal_rpc_switch_fiber, .-metal_rpc_switch_fiber
.section .note.GNU-stack,"",@progbits
.text
)");
#endif

void Group::entry() {
  Group& group = current();
  (*group.body_)();
  group.fibers_[group.thread_].is_done = true;
  // The others go on where they stand; the last one returns to the caller of `run`.
  for (int step = 1; step < group.size_; step++) {
    const int next = (group.thread_ + step) % group.size_;
    if (!group.fibers_[next].is_done) {
      group.go(group.thread_, next);
    }
  }
  group.go(group.thread_, group.size_);
  std::abort();
}

void Group::start(int thread) {
  Fiber& fiber = fibers_[thread];
  fiber.is_done = false;
  if (fiber.stack == nullptr) {
    void* stack = mmap(
        nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) {
      throw std::bad_alloc();
    }
    fiber.stack = static_cast<char*>(stack);
  }
#if defined(__x86_64__)
  // The six registers that the switch pops, then the address that it returns to. At the entry of
  // a function the stack pointer is 8 below a multiple of 16.
  auto top = reinterpret_cast<void**>(fiber.stack + kStackBytes) - 2;
  *top = reinterpret_cast<void*>(&Group::entry);
  fiber.stack_pointer = top - 6;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, &Group::entry, 0);
#endif
}

void Group::go(int from, int to) {
  thread_ = to;
#if defined(__x86_64__)
  metal_rpc_switch_fiber(&fibers_[from].stack_pointer, fibers_[to].stack_pointer);
#else
  swapcontext(&fibers_[from].context, &fibers_[to].context);
#endif
}

void Group::run(int size, const std::function<void()>& body) {
  assert(size > 0 && size % kLanes == 0);
  if (static_cast<int>(fibers_.size()) <= size) {
    fibers_.resize(size + 1);
  }
  exchange.resize(fibers_.size());
  left.resize(fibers_.size());
  right.resize(fibers_.size());
  size_ = size;
  body_ = &body;
  for (int thread = 0; thread < size; thread++) {
    start(thread);
  }
  go(size, 0);
}

void Group::hand_over(int first, int count) {
  const int next = first + (thread_ - first + 1) % count;
  if (next != thread_) {
    go(thread_, next);
  }
}
