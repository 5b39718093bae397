// dropout + add + layer norm, one pass over memory each way: a row stays in L1 while it is summed, centred
// and scaled. Backward, with h = new_residual, xhat = (h - mean) rstd and g = grad_normed * weight
// (derivation in docs/math.md):
//   grad_h = rstd (g - mean(g) - xhat mean(g xhat)) + grad_new_residual,   grad_x = dropout'(grad_h),
//   grad_weight = sum_n grad_normed xhat,                                  grad_bias = sum_n grad_normed.
#include "ops/dropout_add_layer_norm.h"

#include "core/dispatch.h"
#include "cpu/declarations.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace glm::cpu::GLM_ISA {
namespace {

constexpr int64_t kRowsPerTask = 16;

template <class T, bool kDropout>
void forward_row(const DropoutAddLayerNormForward& p, const RowDropout& dropout, int64_t n) {
  using C = Compute<T>;
  const int64_t width = p.width;
  const T* x = static_cast<const T*>(p.x) + n * width;
  const T* residual = static_cast<const T*>(p.residual) + n * width;
  const T* weight = static_cast<const T*>(p.weight);
  const T* bias = static_cast<const T*>(p.bias);
  T* sum_out = static_cast<T*>(p.new_residual) + n * width;
  T* normed = static_cast<T*>(p.normed) + n * width;

  Vec<C> sum = {};
  for_columns_dropout<C, kDropout>(dropout, n, width, [&](int64_t e, int count, auto dropped) {
    Vec<C> h = load_as_some(residual + e, count) + dropped(load_as_some(x + e, count));
    store_as_some(sum_out + e, h, count);
    if constexpr (sizeof(T) == 2)
      h = load_as_some(sum_out + e, count);  // the mean is that of the rounded sum
    sum += keep_first<C>(h, count);
  });
  const C mean = reduce_add(sum) / static_cast<C>(width);

  Vec<C> squares = {};
  for_columns<C>(0, width, [&](int64_t e, int count) {
    const Vec<C> centred = keep_first<C>(load_as_some(sum_out + e, count) - mean, count);
    squares = fma(centred, centred, squares);
  });
  const C rstd = C(1) / std::sqrt(reduce_add(squares) / static_cast<C>(width) + static_cast<C>(p.eps));

  for_columns<C>(0, width, [&](int64_t e, int count) {
    const Vec<C> xhat = (load_as_some(sum_out + e, count) - mean) * rstd;
    store_as_some(normed + e, fma(xhat, load_as_some(weight + e, count), load_as_some(bias + e, count)),
                  count);
  });
  static_cast<C*>(p.mean)[n] = mean;
  static_cast<C*>(p.rstd)[n] = rstd;
}

template <class T>
GLM_INLINE T* row_or_null(void* matrix, int64_t n, int64_t width) {
  return matrix ? static_cast<T*>(matrix) + n * width : nullptr;
}

// Also adds row n's part of the weight and bias gradients to weight_sum and bias_sum, [E] each, unless null.
template <class T, bool kDropout>
void backward_row(const DropoutAddLayerNormBackward& p, const RowDropout& dropout, int64_t n,
                  Compute<T>* weight_sum, Compute<T>* bias_sum) {
  using C = Compute<T>;
  const int64_t width = p.width;
  const T* grad_normed = static_cast<const T*>(p.grad_normed) + n * width;
  const T* grad_stream =
      p.grad_new_residual ? static_cast<const T*>(p.grad_new_residual) + n * width : nullptr;
  const T* h = static_cast<const T*>(p.new_residual) + n * width;
  const T* weight = static_cast<const T*>(p.weight);
  T* grad_x = row_or_null<T>(p.grad_x, n, width);
  T* grad_residual = row_or_null<T>(p.grad_residual, n, width);
  const C mean = static_cast<const C*>(p.mean)[n], rstd = static_cast<const C*>(p.rstd)[n];

  Vec<C> g_sum = {}, g_xhat_sum = {};
  for_columns<C>(0, width, [&](int64_t e, int count) {
    const Vec<C> dy = load_as_some(grad_normed + e, count);
    const Vec<C> xhat = (load_as_some(h + e, count) - mean) * rstd;
    const Vec<C> g = keep_first<C>(dy * load_as_some(weight + e, count), count);
    g_sum += g;
    g_xhat_sum = fma(g, xhat, g_xhat_sum);
    if (weight_sum) {
      store_as_some(weight_sum + e, fma(dy, xhat, load_as_some(weight_sum + e, count)), count);
      store_as_some(bias_sum + e, load_as_some(bias_sum + e, count) + dy, count);
    }
  });
  if (!grad_x && !grad_residual) return;
  const C g_mean = reduce_add(g_sum) / static_cast<C>(width);
  const C g_xhat_mean = reduce_add(g_xhat_sum) / static_cast<C>(width);

  for_columns_dropout<C, kDropout>(dropout, n, width, [&](int64_t e, int count, auto dropped) {
    const Vec<C> xhat = (load_as_some(h + e, count) - mean) * rstd;
    const Vec<C> g = load_as_some(grad_normed + e, count) * load_as_some(weight + e, count);
    Vec<C> grad_h = (g - g_mean - xhat * g_xhat_mean) * rstd;
    if (grad_stream) grad_h += load_as_some(grad_stream + e, count);
    if (grad_residual) store_as_some(grad_residual + e, grad_h, count);
    if (grad_x) store_as_some(grad_x + e, dropped(grad_h), count);
  });
}

// out[e] = sum over the partials, in order, of workspace[partial][which][e].
template <class T>
void sum_partials(const DropoutAddLayerNormBackward& p, int64_t partials, int which, T* out) {
  using C = Compute<T>;
  const C* first = static_cast<const C*>(p.workspace) + which * p.width;
  for_columns<C>(0, p.width, [&](int64_t e, int count) {
    Vec<C> sum = {};
    for (int64_t part = 0; part < partials; ++part)
      sum += load_as_some(first + part * 2 * p.width + e, count);
    store_as_some(out + e, sum, count);
  });
}

}  // namespace

void dropout_add_layer_norm_forward(const DropoutAddLayerNormForward& p) {
  const RowDropout dropout(p.dropout);
  visit_floating(p.dtype, [&]<class T>(Type<T>) {
    visit_bool(p.dropout.active(), [&](auto has_dropout) {
      parallel_for(ceil_div(p.rows, kRowsPerTask), p.threads, [&](int64_t task) {
        const int64_t end = std::min((task + 1) * kRowsPerTask, p.rows);
        for (int64_t n = task * kRowsPerTask; n < end; ++n) forward_row<T, has_dropout.value>(p, dropout, n);
      });
    });
  });
}

void dropout_add_layer_norm_backward(const DropoutAddLayerNormBackward& p) {
  const RowDropout dropout(p.dropout);
  const int64_t partials = dropout_add_layer_norm_partials(p.rows);
  visit_floating(p.dtype, [&]<class T>(Type<T>) {
    using C = Compute<T>;
    C* workspace = static_cast<C*>(p.workspace);
    visit_bool(p.dropout.active() && p.grad_x, [&](auto has_dropout) {
      parallel_for(partials, p.threads, [&](int64_t part) {
        C *weight_sum = nullptr, *bias_sum = nullptr;
        if (p.grad_weight) {
          weight_sum = workspace + part * 2 * p.width;
          bias_sum = weight_sum + p.width;
          std::fill(weight_sum, weight_sum + 2 * p.width, C(0));
        }
        const int64_t begin = part * p.rows / partials, end = (part + 1) * p.rows / partials;
        for (int64_t n = begin; n < end; ++n)
          backward_row<T, has_dropout.value>(p, dropout, n, weight_sum, bias_sum);
      });
    });
    if (p.grad_weight) {
      sum_partials(p, partials, 0, static_cast<T*>(p.grad_weight));
      sum_partials(p, partials, 1, static_cast<T*>(p.grad_bias));
    }
  });
}

}  // namespace glm::cpu::GLM_ISA
