// Every kernel of the table in force against plain loops in double, on small cases. It runs where there is no
// Python, as under an emulator; GLM_FORCE_ISA picks the table. python_tests holds the long lists of cases.
#include "cpu/kernels.h"
#include "tests/kernels/tests.h"

int main() {
  std::printf("%s\n", glm::cpu::kernels().isa);
  glm::test::test_dropout_add_layer_norm();
  glm::test::test_embedding_2d();
  glm::test::test_gelu_mlp();
  glm::test::test_linear();
  glm::test::test_linear_cross_entropy();
  glm::test::test_parallel();
  glm::test::test_span_attention();
  return glm::test::finish();
}
