#include "cpu/workspace.h"

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace glm::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;

  ~Buffer() { std::free(data); }

  void grow(size_t wanted) {
    std::free(data);
    data = nullptr;
    bytes = 0;
    const size_t page = wanted >= kHugePage ? kHugePage : 64;
    const size_t rounded = (wanted + page - 1) / page * page;
    data = std::aligned_alloc(page, rounded);
    if (data == nullptr) throw std::bad_alloc();
    bytes = rounded;
#if defined(__linux__)
    // Fewer page faults now and fewer TLB misses later; without it everything works as well, slower.
    if (page == kHugePage) madvise(data, rounded, MADV_HUGEPAGE);
#endif
  }
};

thread_local Buffer buffers[static_cast<int>(Slot::count)];

}  // namespace

void use_large_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void* workspace(Slot slot, size_t bytes) {
  Buffer& buffer = buffers[static_cast<int>(slot)];
  if (buffer.bytes < bytes) buffer.grow(bytes);
  return buffer.data;
}

}  // namespace glm::cpu
