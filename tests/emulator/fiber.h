// Threads of execution that switch only when they say so: a stack and a saved stack pointer each.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

#if defined(__x86_64__)

extern "C" void simt_switch(void** save, void* load);

struct Context {
  void* stack_pointer = nullptr;
  void start(char* stack, size_t bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t(15)) - 8);
    *--top = reinterpret_cast<void*>(entry);  // where the first switch returns to, the stack aligned as after a call
    stack_pointer = top - 6;                  // six registers of no meaning yet
  }
  void switch_to(Context& next) { simt_switch(&stack_pointer, next.stack_pointer); }
};

#else

struct Context {
  ucontext_t state;
  void start(char* stack, size_t bytes, void (*entry)()) {
    getcontext(&state);
    state.uc_stack.ss_sp = stack, state.uc_stack.ss_size = bytes, state.uc_link = nullptr;
    makecontext(&state, entry, 0);
  }
  void switch_to(Context& next) { swapcontext(&state, &next.state); }
};

#endif

// Stacks for one block, each above a page that must not be touched.
class Stacks {
 public:
  // Only what is touched takes memory; PTX that is compiled without optimisation keeps each register of a thread here.
  static constexpr size_t kBytes = 256 * 1024, kGuard = 4096;
  explicit Stacks(int count) : count_(count) {
    void* memory = mmap(nullptr, count * (kBytes + kGuard), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) abort();
    base_ = static_cast<char*>(memory);
    for (int i = 0; i < count; ++i) mprotect(base_ + i * (kBytes + kGuard), kGuard, PROT_NONE);
  }
  ~Stacks() { munmap(base_, count_ * (kBytes + kGuard)); }
  Stacks(const Stacks&) = delete;
  char* operator[](int i) const { return base_ + i * (kBytes + kGuard) + kGuard; }

 private:
  char* base_;
  int count_;
};

}  // namespace simt
