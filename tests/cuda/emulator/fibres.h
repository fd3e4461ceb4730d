// Cooperative fibres: functions that run in turn on one thread, each on a stack of its own. For tests only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <new>

#if defined(__x86_64__) && defined(__linux__)
#define PAL_FAST_FAST_SWITCH 1
#else
#include <ucontext.h>
#endif

namespace emulator {

#ifdef PAL_FAST_FAST_SWITCH
// swapcontext asks the kernel for the signal mask each time; this saves what the calling convention asks for, and takes
// a few nanoseconds.
extern "C" void pal_fast_switch_stacks(void** save, void* restore);
asm(R"(
.text
.local pal_fast_switch_stacks
.type pal_fast_switch_stacks, @function
pal_fast_switch_stacks:
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
.size pal_fast_switch_stacks, .-pal_fast_switch_stacks
)");
#endif

class Fibre {
 public:
  static constexpr size_t STACK_BYTES = 1 << 16;

  // A fibre's stack serves one function after the other.
  void start(const std::function<void()>* function) {
    function_ = function;
    finished_ = false;
    failure_ = nullptr;
    if (!stack_) {
      stack_.reset(new unsigned char[STACK_BYTES]);
    }
#ifdef PAL_FAST_FAST_SWITCH
    auto top = reinterpret_cast<uintptr_t>(stack_.get() + STACK_BYTES) & ~uintptr_t{15};
    auto* frame = reinterpret_cast<void**>(top) - 2;  // keeps the stack as a call would leave it
    frame[0] = reinterpret_cast<void*>(&Fibre::enter);
    frame[1] = nullptr;
    own_ = frame - 6;  // the saved registers, whose values do not matter
#else
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack_.get();
    own_.uc_stack.ss_size = STACK_BYTES;
    own_.uc_link = nullptr;
    makecontext(&own_, &Fibre::enter, 0);
#endif
  }

  // Runs the function until it yields, returns or throws.
  void resume() {
    current() = this;
#ifdef PAL_FAST_FAST_SWITCH
    pal_fast_switch_stacks(&caller_, own_);
#else
    swapcontext(&caller_, &own_);
#endif
    current() = nullptr;
  }

  // Called by a fibre's function: returns to the caller of resume.
  static void yield() {
    Fibre* fibre = current();
#ifdef PAL_FAST_FAST_SWITCH
    pal_fast_switch_stacks(&fibre->own_, fibre->caller_);
#else
    swapcontext(&fibre->own_, &fibre->caller_);
#endif
  }

  [[nodiscard]] bool finished() const { return finished_; }
  [[nodiscard]] std::exception_ptr failure() const { return failure_; }

 private:
  static Fibre*& current() {
    static Fibre* fibre = nullptr;
    return fibre;
  }

  static void enter() {
    Fibre* fibre = current();
    try {
      (*fibre->function_)();
    } catch (...) {
      fibre->failure_ = std::current_exception();
    }
    fibre->finished_ = true;
    yield();
    std::terminate();  // a finished fibre is not resumed
  }

  const std::function<void()>* function_ = nullptr;
  bool finished_ = true;
  std::exception_ptr failure_;
  std::unique_ptr<unsigned char[]> stack_;
#ifdef PAL_FAST_FAST_SWITCH
  void* own_ = nullptr;
  void* caller_ = nullptr;
#else
  ucontext_t own_{};
  ucontext_t caller_{};
#endif
};

}  // namespace emulator
