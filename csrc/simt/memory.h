// Global memory: what a kernel may touch. Where regions are declared (the Python tests declare the storage of
// every tensor of a call), an access outside of them all is an error; without any, every access passes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <utility>
#include <vector>

namespace glm::simt {

class GlobalMemory {
 public:
  void allow(std::vector<std::pair<uintptr_t, uintptr_t>> regions) {
    regions_ = std::move(regions);
  }  // [begin, end)
  void check(const void* address, int bytes, std::source_location site);

 private:
  std::vector<std::pair<uintptr_t, uintptr_t>> regions_;
  std::size_t last_ = 0;  // where the access before was
};

GlobalMemory& global_memory();

}  // namespace glm::simt
