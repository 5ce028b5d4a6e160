// A fiber: a stack of its own and the place where it stopped. x86-64 switches by a few instructions, other machines by
// ucontext. Under AddressSanitizer every switch is announced, or it would take a foreign stack for an overflow.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && !defined(MSG3D_EMULATOR_UCONTEXT)
#define MSG3D_FIBER_ASSEMBLY 1
#else
#define MSG3D_FIBER_ASSEMBLY 0
#include <ucontext.h>
#endif

namespace msg3d::simt::emulator {

#if MSG3D_FIBER_ASSEMBLY
extern "C" void msg3d_switch_stack(void** save, void* load);
// The callee-saved registers of the System V ABI go through the stack that is left.
asm(R"(
.text
.type msg3d_switch_stack, @function
msg3d_switch_stack:
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
.size msg3d_switch_stack, .-msg3d_switch_stack
)");
#endif

class Fiber {
 public:
  static constexpr size_t kStackBytes = 512 * 1024;  // unrolled kernels have large frames; untouched pages cost nothing

  // Makes the next switch to this fiber call `entry`, which must never return.
  void start(void (*entry)()) {
    if (stack_ == nullptr) {
      const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
      void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, flags, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
      stack_ = static_cast<unsigned char*>(memory);
    }
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_, kStackBytes);  // whoever ran here last may not have returned
    fake_stack_ = nullptr;
#endif
#if MSG3D_FIBER_ASSEMBLY
    void** top = reinterpret_cast<void**>(stack_ + kStackBytes) - 1;
    *top = nullptr;                           // where entry would return to; keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(entry);  // popped by ret
    for (int i = 0; i < 6; ++i) *--top = nullptr;  // the saved registers
    pointer_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
  }

  // Stops `from`, the fiber that runs now, and goes on in `to`.
  static void pass(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from.fake_stack_, to.stack_ ? to.stack_ : to.bottom_,
                                   to.stack_ ? kStackBytes : to.size_);
#endif
#if MSG3D_FIBER_ASSEMBLY
    msg3d_switch_stack(&from.pointer_, to.pointer_);
#else
    swapcontext(&from.context_, &to.context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
  }

  // First thing in an entry; `from` is the fiber that came from a stack of the system's.
  static void entered([[maybe_unused]] Fiber& from) {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (from.bottom_ == nullptr) from.bottom_ = bottom, from.size_ = size;
#endif
  }

  bool holds(const void* address) const { return stack_ && address >= stack_ && address < stack_ + kStackBytes; }

 private:
  unsigned char* stack_ = nullptr;
#if MSG3D_FIBER_ASSEMBLY
  void* pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
#endif
};

}  // namespace msg3d::simt::emulator
