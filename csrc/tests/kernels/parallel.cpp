// What an item of a parallel loop throws comes out of the loop, when all items have been tried.
#include "cpu/parallel.h"

#include <atomic>
#include <new>

#include "tests/kernels/tests.h"

namespace glm::test {

void test_parallel() {
  for (int threads : {1, 2}) {
    std::atomic<int> tried = 0;
    bool caught = false;
    try {
      cpu::parallel_for(8, threads, [&](int64_t i) {
        ++tried;
        if (i == 7) throw std::bad_alloc();
      });
    } catch (const std::bad_alloc&) {
      caught = true;
    }
    expect(caught, "an exception comes out of parallel_for");
    expect(tried == 8, "every item is tried");
  }
}

}  // namespace glm::test
