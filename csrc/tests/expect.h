// What a test says: expect(condition) and expect_near(got, wanted, tolerance). A failure prints its line;
// finish() is the exit status of main.
#pragma once

#include <cmath>
#include <cstdio>

namespace glm::test {

inline long passed = 0, failed = 0;

// Where a test stands; an argument left to its default is the caller's own place.
struct Place {
  const char* file = __builtin_FILE();
  int line = __builtin_LINE();
};

inline void expect(bool condition, const char* what = "", Place at = {}) {
  ++(condition ? passed : failed);
  if (!condition && failed <= 20) std::printf("%s:%d: %s\n", at.file, at.line, what);
}

inline void expect_near(double got, double wanted, double tolerance, const char* what = "", Place at = {}) {
  const bool near = std::abs(got - wanted) <= tolerance;  // false for a NaN
  expect(near, what, at);
  if (!near && failed <= 20) std::printf("  expected %.9g within %.2g, got %.9g\n", wanted, tolerance, got);
}

inline int finish() {
  std::printf("%ld passed, %ld failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace glm::test
