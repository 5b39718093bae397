#include "ops/gelu_mlp.h"

#include <cstring>

#include "cpu/kernels.h"
#include "tests/kernels/tests.h"

namespace glm::test {
namespace {

template <class T>
Matrix matrix(const std::vector<T>& x, int64_t cols) {
  return {x.data(), cols, 1};
}

// a [rows, depth] times b [cols, depth], transposed as asked: element (r, c).
template <class T>
double dot(const std::vector<T>& a, int64_t a_row, int64_t a_step, const std::vector<T>& b, int64_t b_row,
           int64_t b_step, int64_t depth) {
  double sum = 0;
  for (int64_t k = 0; k < depth; ++k) sum += value(a[a_row + k * a_step]) * value(b[b_row + k * b_step]);
  return sum;
}

template <class T>
void check(int64_t N, int64_t E, int64_t F, int64_t O, Gelu kind, bool keep_post) {
  const auto x = random<T>(N * E, 1), w1 = random<T>(F * E, 2), b1 = random<T>(F, 3);
  const auto w2 = random<T>(O * F, 4), b2 = random<T>(O, 5), grad_y = random<T>(N * O, 6);
  auto pre = unwritten<T>(N * F), post = unwritten<T>(N * F), y = unwritten<T>(N * O),
       grad_pre = unwritten<T>(N * F);
  auto grad_x = unwritten<T>(N * E), grad_w1 = unwritten<T>(F * E), grad_b1 = unwritten<T>(F);
  auto grad_w2 = unwritten<T>(O * F), grad_b2 = unwritten<T>(O);
  auto sums = unwritten<Compute<T>>(sum_groups(N) * std::max(F, O));
  const GeluMlpShape shape = {kDType<T>, kind, N, E, F, O};
  cpu::kernels().gelu_mlp_forward({
      .shape = shape,
      .x = matrix(x, E),
      .w1 = matrix(w1, E),
      .b1 = b1.data(),
      .w2 = matrix(w2, F),
      .b2 = b2.data(),
      .pre = pre.data(),
      .post = keep_post ? post.data() : nullptr,
      .y = y.data(),
      .threads = 2,
  });
  GeluMlpBackward backward = {
      .shape = shape,
      .grad_y = matrix(grad_y, O),
      .x = matrix(x, E),
      .w1 = matrix(w1, E),
      .w2 = matrix(w2, F),
      .pre = pre.data(),
      .post = keep_post ? post.data() : nullptr,
      .grad_pre = grad_pre.data(),
      .sums = sums.data(),
      .grad_x = grad_x.data(),
      .grad_w1 = grad_w1.data(),
      .grad_b1 = grad_b1.data(),
      .grad_w2 = grad_w2.data(),
      .grad_b2 = grad_b2.data(),
      .threads = 2,
  };
  cpu::kernels().gelu_mlp_backward(backward);

  // From what was stored at each step, so that a rounding is not counted twice. The products' factors are
  // below 2 and about 6 (pre), so that many roundings of T.
  std::vector<double> activated(static_cast<size_t>(N * F));
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t f = 0; f < F; ++f) {
      const double wanted = dot(x, n * E, 1, w1, f * E, 1, E) + value(b1[f]);
      expect_close(pre[n * F + f], wanted, E, "pre");
      activated[n * F + f] = gelu(value(pre[n * F + f]), kind);
      if (keep_post) expect_close(post[n * F + f], activated[n * F + f], 4, "post");
      const double grad_post = dot(grad_y, n * O, 1, w2, f, F, O);
      const double slope = gelu_grad(value(pre[n * F + f]), kind);
      expect_close(grad_pre[n * F + f], grad_post * slope, 4.0 * O, "grad_pre", std::abs(grad_post));
    }
  }
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t o = 0; o < O; ++o) {
      double sum = value(b2[o]);
      for (int64_t f = 0; f < F; ++f) sum += activated[n * F + f] * value(w2[o * F + f]);
      expect_close(y[n * O + o], sum, 8.0 * F, "y", 2.0 * F);
    }
    for (int64_t e = 0; e < E; ++e)
      expect_close(grad_x[n * E + e], dot(grad_pre, n * F, 1, w1, e, E, F), 16.0 * F, "grad_x");
  }
  for (int64_t f = 0; f < F; ++f) {
    double bias = 0;
    for (int64_t n = 0; n < N; ++n) bias += value(grad_pre[n * F + f]);
    expect_close(grad_b1[f], bias, 16.0 * N, "grad_b1", 4.0 * N);
    for (int64_t e = 0; e < E; ++e)
      expect_close(grad_w1[f * E + e], dot(grad_pre, f, F, x, e, E, N), 16.0 * N, "grad_w1");
  }
  for (int64_t o = 0; o < O; ++o) {
    double bias = 0;
    for (int64_t n = 0; n < N; ++n) bias += value(grad_y[n * O + o]);
    expect_close(grad_b2[o], bias, N, "grad_b2");
    for (int64_t f = 0; f < F; ++f) {
      double sum = 0;
      for (int64_t n = 0; n < N; ++n) sum += value(grad_y[n * O + o]) * activated[n * F + f];
      expect_close(grad_w2[o * F + f], sum, 8.0 * N, "grad_w2", 4.0 * N);
    }
  }

  // The gradient of pre in its place: the same bits.
  const std::vector<std::vector<T>> apart = {grad_pre, grad_x, grad_w1, grad_b1, grad_w2, grad_b2};
  backward.grad_pre = pre.data();
  cpu::kernels().gelu_mlp_backward(backward);
  const std::vector<std::vector<T>> in_place = {pre, grad_x, grad_w1, grad_b1, grad_w2, grad_b2};
  for (size_t i = 0; i < apart.size(); ++i)
    expect(std::memcmp(apart[i].data(), in_place[i].data(), apart[i].size() * sizeof(T)) == 0, "in place");
}

}  // namespace

void test_gelu_mlp() {
  for_each_dtype([]<class T>(Type<T>) {
    for (const Gelu kind : {Gelu::tanh, Gelu::erf}) {
      for (const bool keep_post : {false, true}) {
        check<T>(1, 1, 1, 1, kind, keep_post);
        check<T>(7, 5, 19, 3, kind, keep_post);
        check<T>(29, 17, 70, 41, kind, keep_post);
      }
    }
  });
}

}  // namespace glm::test
