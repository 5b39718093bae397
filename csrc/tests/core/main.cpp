// Tests of csrc/core, the maths that every device shares.
#include "tests/core/tests.h"
#include "tests/expect.h"

int main() {
  glm::test::test_dtype();
  glm::test::test_gelu();
  glm::test::test_philox();
  glm::test::test_span_mask();
  return glm::test::finish();
}
