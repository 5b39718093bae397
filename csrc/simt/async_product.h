// wgmma of one warp: products are put into groups, and a wait makes all but the last few groups finish. Like
// cp.async (async_copy.h) in two models: at once, or, where copies are deferred, not before they are waited for.
#pragma once

#include <cstdint>
#include <functional>
#include <source_location>
#include <vector>

namespace glm::simt {

// Products since it was last set to 0, of all launches: whether a kernel has any.
inline int64_t product_count = 0;

class AsyncProducts {
 public:
  void issue(std::function<void()> run, std::source_location site);
  void commit() { ++group_; }
  void wait_all_but(int groups);
  void check_all_waited() const;  // at the end of the kernel
  void clear();

 private:
  struct Product {
    std::function<void()> run;
    int group;
    std::source_location site;
  };
  std::vector<Product> pending_;  // in the order of issue
  int group_ = 0;                 // the one being filled
};

}  // namespace glm::simt
