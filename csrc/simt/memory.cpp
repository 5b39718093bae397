#include "simt/memory.h"

#include "simt/machine.h"

namespace glm::simt {

GlobalMemory& global_memory() {
  static GlobalMemory value;
  return value;
}

void GlobalMemory::check(const void* address, int bytes, std::source_location site) {
  const auto begin = reinterpret_cast<uintptr_t>(address), end = begin + static_cast<uintptr_t>(bytes);
  if (begin % static_cast<uintptr_t>(bytes) != 0)
    fault(site, "global memory: address ", address, " is not aligned to an access of ", bytes, " bytes");
  if (regions_.empty()) return;
  const auto holds = [&](size_t i) {
    return i < regions_.size() && regions_[i].first <= begin && end <= regions_[i].second;
  };
  if (holds(last_)) return;
  for (size_t i = 0; i < regions_.size(); ++i)
    if (holds(i)) {
      last_ = i;
      return;
    }
  fault(site, "global memory: ", bytes, " bytes at ", address, " are outside of every tensor of the call");
}

}  // namespace glm::simt
