// Large buffers that come fresh from the allocator: the first touch of a 4 KB page costs more than filling
// it.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace glm::cpu {

// Asks for 2 MB pages in the part of [data, data + bytes) that whole ones cover. Only a wish: contents,
// results and memory that is already there stay as they are.
[[gnu::always_inline]] inline void prefer_huge_pages([[maybe_unused]] void* data,
                                                     [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace glm::cpu
