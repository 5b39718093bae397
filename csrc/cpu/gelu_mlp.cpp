// The MLP as two matrix products forward and four backward; every elementwise step is done where a product
// reads or writes anyway (cpu/gemm.h). With p = x w1^T + b1 and dp = (dy w2) gelu'(p):
//   y = gelu(p) w2^T + b2,   dx = dp w1,   dw1 = dp^T x,   db1 = sum_n dp,
//   dw2 = dy^T gelu(p),   db2 = sum_n dy.
#include "ops/gelu_mlp.h"

#include "core/dispatch.h"
#include "cpu/declarations.h"
#include "cpu/gelu_simd.h"
#include "cpu/gemm.h"
#include "cpu/matrix.h"
#include "cpu/rows.h"

namespace glm::cpu::GLM_ISA {
namespace {

static_assert(kBlockRows % kSumRows == 0, "a group of rows is within a block: one thread sums it, in order");
static_assert(kSumRows % kTileRows == 0, "a group begins with a tile");

template <class P, Gelu kKind>
void activate(P* values, int64_t count) {
  for_columns<P>(0, count, [&](int64_t i, int some) {
    store_first(values + i, map_packed(load_first(values + i, some), [](auto v) { return gelu<kKind>(v); }),
                some);
  });
}

template <class T>
auto activation(Gelu kind) {
  return kind == Gelu::tanh ? activate<Packed<T>, Gelu::tanh> : activate<Packed<T>, Gelu::erf>;
}

// pre = C + bias, and post = gelu(pre).
template <class T>
struct StoreActivation {
  Store<T> pre;
  T* post;
  Gelu kind;

  GLM_INLINE void prefetch(int64_t row, int64_t col, int rows, int cols) const {
    pre.prefetch(row, col, rows, cols);
    prefetch_tile(post, pre.row_stride, row, col, rows, cols);
  }

  GLM_INLINE void operator()(GemmTile<Compute<T>>& tile, int64_t row, int64_t col, int rows, int cols) const {
    pre(tile, row, col, rows, cols);
    for_tile<Compute<T>>(tile, rows, cols, [&](int r, int c, const auto&, int count) {
      const int64_t at = (row + r) * pre.row_stride + col + c;
      const Vec<Compute<T>> p = load_as_some(pre.out + at, count);
      store_as_some(post + at, kind == Gelu::tanh ? gelu<Gelu::tanh>(p) : gelu<Gelu::erf>(p), count);
    });
  }
};

// grad_pre = C gelu'(pre), and its sums over groups of rows.
template <class T>
struct StoreGradPre {
  using C = Compute<T>;
  const T* pre;
  T* grad_pre;
  int64_t hidden;
  C* sums;  // [groups, hidden], or null
  Gelu kind;

  GLM_INLINE void prefetch(int64_t row, int64_t col, int rows, int cols) const {
    prefetch_tile(pre, hidden, row, col, rows, cols);
    prefetch_tile(grad_pre, hidden, row, col, rows, cols);
  }

  GLM_INLINE void operator()(GemmTile<C>& tile, int64_t row, int64_t col, int rows, int cols) const {
    for_tile<C>(tile, rows, cols, [&](int r, int c, Vec<C>& v, int count) {
      const int64_t at = (row + r) * hidden + col + c;
      const Vec<C> p = load_as_some(pre + at, count);
      v *= kind == Gelu::tanh ? gelu_grad<Gelu::tanh>(p) : gelu_grad<Gelu::erf>(p);
      store_as_some(grad_pre + at, v, count);
    });
    if (sums == nullptr) return;
    C* sum = sums + row / kSumRows * hidden + col;
    const bool starts = row % kSumRows == 0;
    for (int c = 0; c < cols; c += kLanes<C>) {
      const int count = std::min(kLanes<C>, cols - c);
      Vec<C> total = starts ? Vec<C>{} : load_as_some(sum + c, count);
      for (int r = 0; r < rows; ++r) total += tile.at[r][c / kLanes<C>];
      store_as_some(sum + c, total, count);
    }
  }
};

template <class T>
void forward(const GeluMlpForward& p) {
  const auto& [dtype, kind, rows, width, hidden, width_out] = p.shape;
  const Store<T> store_pre = {static_cast<T*>(p.pre), hidden, static_cast<const T*>(p.b1)};
  if (p.post) {
    const StoreActivation<T> store = {store_pre, static_cast<T*>(p.post), kind};
    gemm(rows, hidden, width, by_rows<T>(p.x), by_rows<T>(p.w1), store, p.threads);
  } else {
    gemm(rows, hidden, width, by_rows<T>(p.x), by_rows<T>(p.w1), store_pre, p.threads);
  }
  if (!p.y) return;
  const Store<T> store_y = {static_cast<T*>(p.y), width_out, static_cast<const T*>(p.b2)};
  if (p.post) {
    const Operand<T> post = {static_cast<const T*>(p.post), hidden, 1};
    gemm(rows, width_out, hidden, post, by_rows<T>(p.w2), store_y, p.threads);
  } else {
    const Operand<T> post = {static_cast<const T*>(p.pre), hidden, 1, activation<T>(kind)};
    gemm(rows, width_out, hidden, post, by_rows<T>(p.w2), store_y, p.threads);
  }
}

template <class T>
void backward(const GeluMlpBackward& p) {
  using C = Compute<T>;
  const auto& [dtype, kind, rows, width, hidden, width_out] = p.shape;
  const T* pre = static_cast<const T*>(p.pre);
  T* grad_pre = static_cast<T*>(p.grad_pre);
  C* sums = static_cast<C*>(p.sums);
  if (p.grad_b2)
    sum_rows<T>(by_rows<T>(p.grad_y), rows, width_out, sums, static_cast<T*>(p.grad_b2), p.threads);
  if (p.grad_w2) {
    const Store<T> store = {static_cast<T*>(p.grad_w2), hidden};
    if (p.post) {
      const Operand<T> post = {static_cast<const T*>(p.post), 1, hidden};
      gemm(width_out, hidden, rows, by_cols<T>(p.grad_y), post, store, p.threads);
    } else {
      const Operand<T> post = {pre, 1, hidden, activation<T>(kind)};
      gemm(width_out, hidden, rows, by_cols<T>(p.grad_y), post, store, p.threads);
    }
  }
  if (!p.grad_x && !p.grad_w1 && !p.grad_b1) return;
  const StoreGradPre<T> store = {pre, grad_pre, hidden, p.grad_b1 ? sums : nullptr, kind};
  gemm(rows, hidden, width_out, by_rows<T>(p.grad_y), by_cols<T>(p.w2), store, p.threads);
  if (p.grad_b1) add_groups<T>(sums, sum_groups(rows), hidden, false, static_cast<T*>(p.grad_b1));
  if (p.grad_x) {
    const Store<T> store_x = {static_cast<T*>(p.grad_x), width};
    gemm(rows, width, hidden, Operand<T>{grad_pre, hidden, 1}, by_cols<T>(p.w1), store_x, p.threads);
  }
  if (p.grad_w1) {
    const Store<T> store_w1 = {static_cast<T*>(p.grad_w1), width};
    gemm(hidden, width, rows, Operand<T>{grad_pre, 1, hidden}, by_cols<T>(p.x), store_w1, p.threads);
  }
}

}  // namespace

void gelu_mlp_forward(const GeluMlpForward& p) {
  visit_storage(p.shape.dtype, [&]<class T>(Type<T>) { forward<T>(p); });
}

void gelu_mlp_backward(const GeluMlpBackward& p) {
  visit_storage(p.shape.dtype, [&]<class T>(Type<T>) { backward<T>(p); });
}

}  // namespace glm::cpu::GLM_ISA
