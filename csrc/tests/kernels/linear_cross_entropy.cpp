#include "ops/linear_cross_entropy.h"

#include <string>

#include "cpu/kernels.h"
#include "tests/kernels/tests.h"

namespace glm::test {
namespace {

template <class T>
void check(int64_t N, int64_t E, int64_t V, double smoothing) {
  using C = Compute<T>;
  const auto hidden = random<T>(N * E, 1), weight = random<T>(V * E, 2);
  const auto targets = ids(N, 7, V);
  std::vector<C> row_weight;
  for (int64_t n = 0; n < N; ++n) row_weight.push_back(static_cast<C>(n % 3 == 1 ? 0.0 : 0.5 + n % 2));
  auto loss = unwritten<C>(1), grad_hidden = unwritten<C>(N * E), grad_weight = unwritten<C>(V * E);
  auto workspace = unwritten<C>(LinearCrossEntropyPlan(N, E, V).workspace());
  cpu::kernels().linear_cross_entropy({
      .dtype = kDType<T>,
      .rows = N,
      .width = E,
      .vocab = V,
      .hidden = hidden.data(),
      .weight = weight.data(),
      .targets = targets.data(),
      .row_weight = row_weight.data(),
      .label_smoothing = smoothing,
      .reduction = Reduction::sum,
      .loss = loss.data(),
      .grad_hidden = grad_hidden.data(),
      .grad_weight = grad_weight.data(),
      .workspace = workspace.data(),
      .threads = 2,
  });

  // The gradient of the logits may be rounded to bf16, as torch keeps it: sizes of what is summed of it, in
  // units of that rounding.
  const double unit = rounds_between_products<T>() ? kEps<bf16> / kEps<C> : 0.0;
  double total = 0;
  std::vector<double> by_hidden(static_cast<size_t>(N * E)), by_weight(static_cast<size_t>(V * E));
  std::vector<double> hidden_size(by_hidden), weight_size(by_weight);
  for (int64_t n = 0; n < N; ++n) {
    std::vector<double> logits(static_cast<size_t>(V));
    double largest = -INFINITY, sum = 0, mean = 0;
    for (int64_t v = 0; v < V; ++v) {
      for (int64_t e = 0; e < E; ++e) logits[v] += value(hidden[n * E + e]) * value(weight[v * E + e]);
      largest = std::max(largest, logits[v]);
      mean += logits[v] / V;
    }
    for (const double logit : logits) sum += std::exp(logit - largest);
    const double lse = largest + std::log(sum);
    total += row_weight[n] * (lse - (1 - smoothing) * logits[targets[n]] - smoothing * mean);
    for (int64_t v = 0; v < V; ++v) {
      const double grad = row_weight[n] * (std::exp(logits[v] - lse) -
                                           (v == targets[n] ? 1 - smoothing : 0.0) - smoothing / V);
      for (int64_t e = 0; e < E; ++e) {
        by_hidden[n * E + e] += grad * value(weight[v * E + e]);
        by_weight[v * E + e] += grad * value(hidden[n * E + e]);
        hidden_size[n * E + e] += unit * std::abs(grad * value(weight[v * E + e]));
        weight_size[v * E + e] += unit * std::abs(grad * value(hidden[n * E + e]));
      }
    }
  }
  expect_close(loss[0], total, E + V, "loss");
  for (size_t i = 0; i < by_hidden.size(); ++i)
    expect_close(grad_hidden[i], by_hidden[i], E + V, "grad_hidden", hidden_size[i]);
  for (size_t i = 0; i < by_weight.size(); ++i)
    expect_close(grad_weight[i], by_weight[i], E + N, "grad_weight", weight_size[i]);
}

}  // namespace

void test_linear_cross_entropy() {
  for_each_dtype([]<class T>(Type<T>) {
    for (const double smoothing : {0.0, 0.1}) {
      check<T>(1, 1, 1, smoothing);
      check<T>(5, 3, 17, smoothing);
      check<T>(35, 29, 211, smoothing);
    }
  });
}

}  // namespace glm::test
