#include "simt/async_product.h"

#include "simt/machine.h"

namespace glm::simt {

void AsyncProducts::issue(std::function<void()> run, std::source_location site) {
  ++product_count;
  if (!options().deferred_copies) run();
  pending_.push_back({std::move(run), group_, site});
}

void AsyncProducts::wait_all_but(int groups) {
  size_t finished = 0;
  while (finished < pending_.size() && pending_[finished].group < group_ - groups) {
    const Product& product = pending_[finished++];
    if (options().deferred_copies) product.run();
  }
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(finished));
}

void AsyncProducts::check_all_waited() const {
  if (!pending_.empty()) fault(pending_.front().site, "the kernel returns before this wgmma was waited for");
}

void AsyncProducts::clear() {
  pending_.clear();
  group_ = 0;
}

}  // namespace glm::simt
