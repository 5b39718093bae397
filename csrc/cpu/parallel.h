// Work is cut by size and handed out by index; which thread takes an item never changes what the item
// computes, so results are the same bits for every thread count.
#pragma once

#include <omp.h>

#include <cstdint>

namespace glm::cpu {

// Runs body(i) for i in [0, items). Items are taken in order, one at a time, so put the costly ones first.
template <class Body>
void parallel_for(int64_t items, int threads, const Body& body) {
  const int team = static_cast<int>(items < threads ? items : threads);
  if (team <= 1) {
    for (int64_t i = 0; i < items; ++i) body(i);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
  for (int64_t i = 0; i < items; ++i) body(i);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace glm::cpu
