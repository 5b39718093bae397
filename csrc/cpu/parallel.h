// Work is cut by size and handed out by index; which thread takes an item never changes what the item
// computes, so results are the same bits for every thread count.
#pragma once

#include <omp.h>

#include <cstdint>
#include <exception>

namespace glm::cpu {

// Runs body(i) for i in [0, items). Items are taken in order, one at a time, so put the costly ones first. What
// an item throws (scratch that is not to be had) is thrown again when all are done: nothing may leave a parallel
// region that way.
template <class Body>
void parallel_for(int64_t items, int threads, const Body& body) {
  const int team = static_cast<int>(items < threads ? items : threads);
  if (team <= 1) {
    for (int64_t i = 0; i < items; ++i) body(i);
    return;
  }
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
  for (int64_t i = 0; i < items; ++i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace glm::cpu
