#include "ops/linear.h"

#include "cpu/kernels.h"
#include "tests/kernels/tests.h"

namespace glm::test {
namespace {

template <class T>
void check(int64_t N, int64_t E, int64_t O) {
  const auto x = random<T>(N * E, 1), weight = random<T>(O * E, 2), bias = random<T>(O, 3),
             grad_y = random<T>(N * O, 4);
  auto y = unwritten<T>(N * O), grad_x = unwritten<T>(N * E), grad_weight = unwritten<T>(O * E),
       grad_bias = unwritten<T>(O);
  auto sums = unwritten<Compute<T>>(sum_groups(N) * O);
  const Matrix x_matrix = {x.data(), E, 1}, weight_matrix = {weight.data(), E, 1};
  cpu::kernels().linear_forward({
      .dtype = kDType<T>,
      .rows = N,
      .width = E,
      .width_out = O,
      .x = x_matrix,
      .weight = weight_matrix,
      .bias = bias.data(),
      .y = y.data(),
      .threads = 2,
  });
  cpu::kernels().linear_backward({
      .dtype = kDType<T>,
      .rows = N,
      .width = E,
      .width_out = O,
      .grad_y = {grad_y.data(), O, 1},
      .x = x_matrix,
      .weight = weight_matrix,
      .sums = sums.data(),
      .grad_x = grad_x.data(),
      .grad_weight = grad_weight.data(),
      .grad_bias = grad_bias.data(),
      .threads = 2,
  });

  // Products of factors below 2.
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t o = 0; o < O; ++o) {
      double sum = value(bias[o]);
      for (int64_t e = 0; e < E; ++e) sum += value(x[n * E + e]) * value(weight[o * E + e]);
      expect_close(y[n * O + o], sum, 4.0 * E, "y");
    }
    for (int64_t e = 0; e < E; ++e) {
      double sum = 0;
      for (int64_t o = 0; o < O; ++o) sum += value(grad_y[n * O + o]) * value(weight[o * E + e]);
      expect_close(grad_x[n * E + e], sum, 4.0 * O, "grad_x");
    }
  }
  for (int64_t o = 0; o < O; ++o) {
    double bias_sum = 0;
    for (int64_t n = 0; n < N; ++n) bias_sum += value(grad_y[n * O + o]);
    expect_close(grad_bias[o], bias_sum, 2.0 * N, "grad_bias");
    for (int64_t e = 0; e < E; ++e) {
      double sum = 0;
      for (int64_t n = 0; n < N; ++n) sum += value(grad_y[n * O + o]) * value(x[n * E + e]);
      expect_close(grad_weight[o * E + e], sum, 4.0 * N, "grad_weight");
    }
  }
}

}  // namespace

void test_linear() {
  for_each_dtype([]<class T>(Type<T>) {
    check<T>(1, 1, 1);
    check<T>(7, 5, 3);
    check<T>(391, 17, 41);
    check<T>(5, 300, 35);  // dot products
  });
}

}  // namespace glm::test
