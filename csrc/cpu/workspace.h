// Scratch memory that stays with its thread: a fresh page costs more than the arithmetic done on it.
#pragma once

#include <cstddef>

namespace glm::cpu {

// Buffers in use at the same time need different slots. gemm.h uses the first four; `op` is for its callers.
enum class Slot { lhs, rhs, sums, tiles, op, count };

// At least `bytes` of this thread's buffer, 64-byte aligned, contents undefined; the last call's pointer to
// the same slot is void. Grows and stays until the thread ends, so ask for megabytes, not for a share of the
// problem.
void* workspace(Slot slot, size_t bytes);

// Asks for large pages for a result that is about to be written from end to end: where its memory is fresh,
// the page faults of small ones cost as much as the writing. Without effect on what is small or in use.
void use_large_pages(void* data, size_t bytes);

template <class T>
T* workspace(Slot slot, size_t count) {
  return static_cast<T*>(workspace(slot, count * sizeof(T)));
}

}  // namespace glm::cpu
