// A fiber: a function on a stack of its own that can stop in the middle and go on later. The threads of a
// CUDA block become fibers; one of them runs at a time, until it has to wait for others.
#pragma once

#include <cstddef>

namespace glm::simt {

class Fiber {
 public:
  static constexpr size_t kStackBytes = 256 * 1024;  // touched pages only are ever backed by memory

  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the next resume() call entry(argument). What ran before, if it had not returned, is dropped.
  void start(void (*entry)(void*), void* argument);

  // Runs the fiber until it suspends or its entry returns. Called from outside any fiber.
  void resume();

  // Goes back to where resume() was called. Called from inside this fiber.
  void suspend();

 private:
  static void trampoline();

  void* mapping_;           // guard page, then the stack
  char* stack_;             // lowest address
  void* own_ = nullptr;     // stack pointer of the suspended fiber
  void* caller_ = nullptr;  // stack pointer of the one who resumed it
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  // What AddressSanitizer has to know of each switch of stacks.
  void* fake_stack_ = nullptr;
  const void* caller_stack_ = nullptr;
  size_t caller_stack_bytes_ = 0;
};

}  // namespace glm::simt
