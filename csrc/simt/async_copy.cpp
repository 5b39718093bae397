#include "simt/async_copy.h"

#include <cstring>

#include "simt/machine.h"

namespace glm::simt {

void AsyncCopies::move(const Copy& copy) {
  if (copy.source != nullptr) {
    std::memcpy(copy.destination, copy.source, static_cast<size_t>(copy.bytes));
  } else {
    std::memset(copy.destination, 0, static_cast<size_t>(copy.bytes));
  }
}

void AsyncCopies::copy(void* destination, const void* source, int bytes, std::source_location site) {
  machine().shared().begin_copy(destination, bytes, site);
  pending_.push_back({destination, source, bytes, group_, site});
  if (!options().deferred_copies) move(pending_.back());
}

void AsyncCopies::commit() { ++group_; }

void AsyncCopies::wait_all_but(int groups, std::source_location site) {
  size_t arrived = 0;
  while (arrived < pending_.size() && pending_[arrived].group < group_ - groups) {
    const Copy& copy = pending_[arrived++];
    if (options().deferred_copies) move(copy);
    machine().shared().finish_copy(copy.destination, copy.bytes, site);
  }
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(arrived));
}

void AsyncCopies::check_all_waited() const {
  if (!pending_.empty())
    fault(pending_.front().site, "the kernel returns before this cp.async was waited for");
}

void AsyncCopies::clear() {
  pending_.clear();
  group_ = 0;
}

}  // namespace glm::simt
