#include "simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#include "core/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the registers that a call must keep and the stack pointer in *save, and goes on at `load`. A kernel
// switches some million times a second: the C library's swapcontext enters the kernel of the operating system
// each time and would be most of the run.
extern "C" void glm_simt_switch(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.hidden glm_simt_switch
.globl glm_simt_switch
.type glm_simt_switch, @function
glm_simt_switch:
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
.size glm_simt_switch, .-glm_simt_switch
)");
constexpr int kSavedWords = 6;
#else
#error "csrc/simt: the switch of stacks is written for x86-64"
#endif

namespace glm::simt {
namespace {

Fiber* starting = nullptr;  // whose trampoline is being entered

}  // namespace

Fiber::Fiber() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  mapping_ = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping_, page, PROT_NONE);  // an overflow faults instead of writing over a neighbour
  stack_ = static_cast<char*>(mapping_) + page;
}

Fiber::~Fiber() {
  munmap(mapping_, static_cast<size_t>(stack_ - static_cast<char*>(mapping_)) + kStackBytes);
}

void Fiber::start(void (*entry)(void*), void* argument) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
  entry_ = entry;
  argument_ = argument;
  fake_stack_ = nullptr;
  // The frame that the first switch pops: zeros for the registers and the trampoline as the return address.
  // After it the stack is as a call leaves it: 8 bytes below a multiple of 16.
  uintptr_t* top = reinterpret_cast<uintptr_t*>(stack_ + kStackBytes) - 1;
  *--top = reinterpret_cast<uintptr_t>(&Fiber::trampoline);
  for (int i = 0; i < kSavedWords; ++i) *--top = 0;
  own_ = top;
}

void Fiber::resume() {
  starting = this;
#if defined(__SANITIZE_ADDRESS__)
  void* own_fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&own_fake_stack, stack_, kStackBytes);
#endif
  glm_simt_switch(&caller_, own_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(own_fake_stack, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack_, caller_stack_, caller_stack_bytes_);
#endif
  glm_simt_switch(&own_, caller_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, &caller_stack_, &caller_stack_bytes_);
#endif
}

void Fiber::trampoline() {
  Fiber* self = starting;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self->caller_stack_, &self->caller_stack_bytes_);
#endif
  self->entry_(self->argument_);
  self->suspend();
  __builtin_unreachable();  // a finished fiber is started again, never resumed
}

}  // namespace glm::simt
