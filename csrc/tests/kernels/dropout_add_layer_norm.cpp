#include "ops/dropout_add_layer_norm.h"

#include "cpu/kernels.h"
#include "tests/kernels/tests.h"

namespace glm::test {
namespace {

constexpr double kEpsilon = 1e-5;

template <class T>
void check(int64_t rows, int64_t width, const Dropout& dropout) {
  using C = Compute<T>;
  const auto x = random<T>(rows * width, 1), residual = random<T>(rows * width, 2);
  const auto weight = random<T>(width, 3), bias = random<T>(width, 4);
  auto normed = unwritten<T>(rows * width), h = unwritten<T>(rows * width);
  auto mean = unwritten<C>(rows), rstd = unwritten<C>(rows);
  cpu::kernels().dropout_add_layer_norm_forward({
      .dtype = kDType<T>,
      .rows = rows,
      .width = width,
      .x = x.data(),
      .residual = residual.data(),
      .weight = weight.data(),
      .bias = bias.data(),
      .normed = normed.data(),
      .new_residual = h.data(),
      .mean = mean.data(),
      .rstd = rstd.data(),
      .eps = kEpsilon,
      .dropout = dropout,
      .threads = 2,
  });

  const auto dy = random<T>(rows * width, 5), dh = random<T>(rows * width, 6);
  auto grad_x = unwritten<T>(rows * width), grad_residual = unwritten<T>(rows * width);
  auto grad_weight = unwritten<T>(width), grad_bias = unwritten<T>(width);
  auto workspace = unwritten<C>(dropout_add_layer_norm_partials(rows) * 2 * width);
  cpu::kernels().dropout_add_layer_norm_backward({
      .dtype = kDType<T>,
      .rows = rows,
      .width = width,
      .grad_normed = dy.data(),
      .grad_new_residual = dh.data(),
      .new_residual = h.data(),
      .weight = weight.data(),
      .mean = mean.data(),
      .rstd = rstd.data(),
      .grad_x = grad_x.data(),
      .grad_residual = grad_residual.data(),
      .grad_weight = grad_weight.data(),
      .grad_bias = grad_bias.data(),
      .workspace = workspace.data(),
      .dropout = dropout,
      .threads = 2,
  });

  std::vector<double> weight_sum(static_cast<size_t>(width)), bias_sum(static_cast<size_t>(width));
  for (int64_t n = 0; n < rows; ++n) {
    const int64_t row = n * width;
    double sum = 0, squares = 0, g_sum = 0, g_xhat_sum = 0;
    for (int64_t e = 0; e < width; ++e) {
      expect_close(h[row + e], value(residual[row + e]) + row_factor(dropout, n, e) * value(x[row + e]), 1,
                   "new_residual");
      sum += value(h[row + e]);
    }
    const double mu = sum / width;
    for (int64_t e = 0; e < width; ++e) squares += (value(h[row + e]) - mu) * (value(h[row + e]) - mu);
    const double r = 1 / std::sqrt(squares / width + kEpsilon);
    expect_close<C>(mean[n], mu, width, "mean");
    expect_close<C>(rstd[n], r, width, "rstd");
    for (int64_t e = 0; e < width; ++e) {
      const double xhat = (value(h[row + e]) - mu) * r, g = value(dy[row + e]) * value(weight[e]);
      expect_close(normed[row + e], xhat * value(weight[e]) + value(bias[e]), width, "normed");
      g_sum += g;
      g_xhat_sum += g * xhat;
      weight_sum[e] += value(dy[row + e]) * xhat;
      bias_sum[e] += value(dy[row + e]);
    }
    for (int64_t e = 0; e < width; ++e) {
      const double xhat = (value(h[row + e]) - mu) * r, g = value(dy[row + e]) * value(weight[e]);
      const double grad_h = r * (g - g_sum / width - xhat * g_xhat_sum / width) + value(dh[row + e]);
      const double scale =
          1 + (width > 1 ? 0 : r);  // one column: differences of equal numbers, times 1/sqrt(eps)
      expect_close(grad_residual[row + e], grad_h, width * scale, "grad_residual");
      expect_close(grad_x[row + e], row_factor(dropout, n, e) * grad_h, width * scale, "grad_x");
    }
  }
  for (int64_t e = 0; e < width; ++e) {
    expect_close(grad_weight[e], weight_sum[e], rows + width, "grad_weight");
    expect_close(grad_bias[e], bias_sum[e], rows, "grad_bias");
  }
}

}  // namespace

void test_dropout_add_layer_norm() {
  for_each_dtype([]<class T>(Type<T>) {
    for (const Dropout dropout : {Dropout{0.0, 0}, Dropout{0.3, 20260101}}) {
      check<T>(1, 1, dropout);
      check<T>(3, 7, dropout);
      check<T>(19, 131, dropout);
      check<T>(2, 256, dropout);
    }
  });
}

}  // namespace glm::test
