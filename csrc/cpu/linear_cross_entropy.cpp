// Linear + cross-entropy. A chunk of the rows that count, R of them, goes twice through the vocabulary:
//
//   first    z^T [V, R] = W rows^T, with the running maximum and sum of exponentials of each row, whence the loss
//   second   z^T becomes its own gradient;   grad_W += z^T rows;   grad_rows += z W
//
// Three products in all. z lies transposed: lanes are rows, so that nothing is reduced across lanes, and W is
// the broadcast side of the first product and the vector side of the last, both as it lies in memory. What
// would be packed otherwise is as large as the logits of a chunk, and costs a quarter of the time.
//
// With m the maximum of a row's logits, s = sum_v exp(z_v - m), e the label smoothing and c the row's weight
// in the loss (derivation in docs/math.md):
//   loss     = c (log s + (1 - e)(m - z_target) + e (m - mean(z)))
//   dloss/dz = c (exp(z - m) / s - (1 - e) onehot(target) - e / V)
#include "ops/linear_cross_entropy.h"

#include <limits>

#include "core/dispatch.h"
#include "cpu/declarations.h"
#include "cpu/pack.h"
#include "cpu/parallel.h"
#include "cpu/product_in_place.h"
#include "cpu/simd.h"
#include "cpu/workspace.h"

namespace glm::cpu::GLM_ISA {
namespace {

using Plan = LinearCrossEntropyPlan;

static_assert(Plan::kUnit % kTileRows == 0 && Plan::kUnit % kTileCols<float> == 0);

// `count` elements of storage type T from `begin` on, as S: the same, or widened.
template <class T, class S>
void widen(const void* from, int64_t begin, int64_t count, S* to) {
  const T* p = static_cast<const T*>(from) + begin;
  if constexpr (std::is_same_v<T, S>) {
    std::copy_n(p, count, to);
  } else {
    for (int64_t i = 0; i < count; i += kLanes<S>) {
      const int some = static_cast<int>(std::min<int64_t>(kLanes<S>, count - i));
      store_as_some(to + i, load_as_some(p + i, some), some);
    }
  }
}

// S: what hidden and W are stored as while they are multiplied. Compute<T>, or T where there are products of
// it.
template <class S>
class Run {
 public:
  using C = Compute<S>;
  using P = Packed<S>;
  using Widen = void (*)(const void*, int64_t, int64_t, S*);

  Run(const LinearCrossEntropy& p, Widen widen, bool widening)
      : p_(p),
        widen_(widen),
        in_place_(!widening && readable_in_place(p)),
        plan_(p.rows, p.width, p.vocab),
        logits_(static_cast<C*>(p.workspace)),
        hidden_(reinterpret_cast<S*>(logits_ + p.vocab * plan_.padded_rows)),
        panels_(reinterpret_cast<P*>(logits_ + (p.vocab + plan_.padded_width) * plan_.padded_rows)),
        grads_(logits_ + (p.vocab + 2 * plan_.padded_width) * plan_.padded_rows),
        statistics_(grads_ + plan_.slices * plan_.padded_width * plan_.padded_rows) {}

  void operator()() {
    if (p_.grad_weight) use_large_pages(p_.grad_weight, p_.vocab * p_.width * sizeof(C));
    use_large_pages(p_.workspace, plan_.workspace() * sizeof(C));
    const C scale = static_cast<C>(1.0 / normaliser());
    double sum = 0.0;
    int64_t next = 0;
    while (gather(next, scale)) {
      first_pass();
      finish_softmax();
      for (int64_t i = 0; i < count_; ++i) sum += loss_[i];
      if (p_.grad_hidden || p_.grad_weight) second_pass();
      first_chunk_ = false;
    }
    if (p_.reduction != Reduction::none) *static_cast<C*>(p_.loss) = static_cast<C>(sum);
    if (p_.grad_weight && first_chunk_)
      std::fill_n(static_cast<C*>(p_.grad_weight), p_.vocab * p_.width, C(0));
  }

 private:
  // ---------------------------------------------------------------------------------------------- the rows

  double normaliser() const {
    if (p_.reduction != Reduction::mean) return 1.0;
    double sum = 0.0;
    for (int64_t n = 0; n < p_.rows; ++n) sum += static_cast<const C*>(p_.row_weight)[n];
    return sum == 0.0 ? 1.0 : sum;
  }

  // Takes the next rows that count, from row `next` on, and gives those that do not their zeros. False: none
  // is left.
  bool gather(int64_t& next, C scale) {
    count_ = 0;
    for (; next < p_.rows && count_ < plan_.padded_rows; ++next) {
      const C weight = static_cast<const C*>(p_.row_weight)[next];
      if (weight == C(0)) {
        if (p_.grad_hidden) std::fill_n(grad_hidden(next), p_.width, C(0));
        if (p_.reduction == Reduction::none) static_cast<C*>(p_.loss)[next] = C(0);
        continue;
      }
      widen_(p_.hidden, next * p_.width, p_.width, hidden_ + count_ * p_.width);
      row_[count_] = next;
      weight_[count_++] = weight * scale;
    }
    columns_ =
        Plan::round_up(Plan::round_up(count_, kTileRows), kTileCols<C>);  // whole tiles for either side
    std::fill(hidden_ + count_ * p_.width, hidden_ + columns_ * p_.width, S{});
    return count_ > 0;
  }

  // -------------------------------------------------------------------------------------- the vocabulary

  // Calls body(slice, begin, v, count) for the words [v, v + count) of each block of each slice, which begins
  // at `begin`; a slice's blocks in order, from one thread. A block of W and its logits stay in L2.
  template <class Body>
  void for_blocks(const Body& body) const {
    const int64_t block = std::clamp<int64_t>(150000 / p_.width, 48, 384) / 48 * 48;
    parallel_for(plan_.slices, p_.threads, [&](int64_t slice) {
      const int64_t begin = slice * plan_.slice, end = std::min(begin + plan_.slice, p_.vocab);
      for (int64_t v = begin; v < end; v += block) body(slice, begin, v, std::min(block, end - v));
    });
  }

  // Whole steps of P, and for the last product, where W is the vector side, whole tiles, which pairs are
  // packed into anyway; and no distance that sends a column of W to one set of the cache.
  static bool readable_in_place(const LinearCrossEntropy& p) {
    constexpr int64_t kUnit = kIsPair<P> ? kPerStep<P> : kTileCols<C>;
    return p.width % kUnit == 0 && p.width * sizeof(S) % 4096 != 0 &&
           reinterpret_cast<uintptr_t>(p.weight) % sizeof(P) == 0;
  }

  struct Rows {
    const S* data;
    int64_t stride;
  };

  // Rows [v, v + count) of W: as they lie, or widened; then also padded with zeros to whole tiles.
  Rows weight_rows(int64_t v, int64_t count) const {
    if (in_place_) return {static_cast<const S*>(p_.weight) + v * p_.width, p_.width};
    const int64_t stride = plan_.padded_width + 64 / static_cast<int64_t>(sizeof(S));
    S* rows = workspace<S>(Slot::op, static_cast<size_t>(count * stride));
    for (int64_t r = 0; r < count; ++r) {
      widen_(p_.weight, (v + r) * p_.width, p_.width, rows + r * stride);
      std::fill(rows + r * stride + p_.width, rows + r * stride + plan_.padded_width, S{});
    }
    return {rows, stride};
  }

  // What the last product will read of a tile's rows of W, from column e on: to L2 while another product
  // runs.
  void prefetch_weight(int64_t v, int64_t rows, int64_t e) const {
    if (!in_place_) return;
    for (int64_t r = v; r < v + rows; ++r) {
      const S* p = static_cast<const S*>(p_.weight) + r * p_.width + e;
      for (int64_t c = 0; c < kTileCols<C>; c += 64 / sizeof(S)) __builtin_prefetch(p + c, 0, 2);
    }
  }

  // The same as the vector side: column e begins at data + e * panel_stride, a step is `stride` on.
  struct Columns {
    const P* data;
    int64_t panel_stride, stride;
  };

  Columns weight_columns(int64_t v, int64_t count) const {
    const Rows w = weight_rows(v, count);
    if constexpr (kIsPair<P>) {
      constexpr int kCols = kTileCols<C>;
      const int64_t panels = ceil_div(p_.width, kCols), steps = steps_of<P>(count);
      P* packed = workspace<P>(Slot::rhs, static_cast<size_t>(panels * kCols * steps));
      pack_panels<kCols>(Operand<S>{w.data, 1, w.stride}, 0, p_.width, 0, panels, 0, count, packed);
      return {packed, steps, kCols};
    } else {
      return {w.data, 1, w.stride};
    }
  }

  C* logits(int64_t v) const { return logits_ + v * plan_.padded_rows; }
  C* statistics(int64_t slice, int which) const {
    return statistics_ + (slice * 3 + which) * plan_.padded_rows;
  }
  C* grad_slice(int64_t slice) const { return grads_ + slice * plan_.padded_width * plan_.padded_rows; }
  C* grad_hidden(int64_t n) const { return static_cast<C*>(p_.grad_hidden) + n * p_.width; }

  void first_pass() {
    constexpr int kCols = kTileCols<C>;
    const int64_t steps = steps_of<P>(p_.width);
    pack_panels<kCols>(Operand<S>{hidden_, p_.width, 1}, 0, columns_, 0, columns_ / kCols, 0, p_.width,
                       panels_);
    for_blocks([&](int64_t slice, int64_t begin, int64_t v, int64_t count) {
      const Rows w = weight_rows(v, count);
      for_row_groups<P>(count, [&](int64_t r, auto multiply) {
        for (int64_t n = 0; n < columns_; n += kCols)
          multiply(steps, reinterpret_cast<const P*>(w.data + r * w.stride), w.stride / kPerStep<P>, 1,
                   panels_ + n * steps, kCols, logits(v + r) + n, plan_.padded_rows, kCols, false);
      });
      add_statistics(slice, v == begin, v, count);
    });
  }

  // The slice's maximum, sum of exponentials below it, and sum of the logits of each row.
  void add_statistics(int64_t slice, bool start, int64_t v, int64_t count) const {
    for (int64_t n = 0; n < columns_; n += kLanes<C>) {
      const C* z = logits(v) + n;
      C *largest = statistics(slice, 0) + n, *exponentials = statistics(slice, 1) + n,
        *total = statistics(slice, 2) + n;
      const Vec<C> before = start ? broadcast(std::numeric_limits<C>::lowest()) : load(largest);
      Vec<C> m = before, z_sum = {}, sum = {};
      for (int64_t r = 0; r < count; ++r) {
        m = max(m, load(z + r * plan_.padded_rows));
        z_sum += load(z + r * plan_.padded_rows);
      }
      for (int64_t r = 0; r < count; ++r) sum += exponential(load(z + r * plan_.padded_rows) - m);
      store(largest, m);
      store(exponentials, start ? sum : fma(load(exponentials), exponential(before - m), sum));
      store(total, start ? z_sum : load(total) + z_sum);
    }
  }

  // Of differences to a maximum: 0 or less.
  GLM_INLINE static Vec<C> exponential(Vec<C> x) { return exp2_below_128(x * static_cast<C>(kLog2E)); }

  // The slices' parts together: losses, and what the gradient needs of each row.
  void finish_softmax() {
    const C smoothing = static_cast<C>(p_.label_smoothing);
    for (int64_t i = 0; i < count_; ++i) {
      C m = statistics(0, 0)[i], s = 0, total = 0;
      for (int64_t slice = 1; slice < plan_.slices; ++slice) {
        const C other = statistics(slice, 0)[i];
        m = other > m || other != other ? other : m;
      }
      for (int64_t slice = 0; slice < plan_.slices; ++slice) {
        s += statistics(slice, 1)[i] * std::exp(statistics(slice, 0)[i] - m);
        total += statistics(slice, 2)[i];
      }
      const C z_target = logits(p_.targets[row_[i]])[i];
      C loss = std::log(s) + (C(1) - smoothing) * (m - z_target);
      if (smoothing != C(0)) loss += smoothing * (m - total / static_cast<C>(p_.vocab));
      loss_[i] = weight_[i] * loss;
      if (p_.reduction == Reduction::none) static_cast<C*>(p_.loss)[row_[i]] = loss_[i];
      largest_[i] = m;
      scale_[i] = weight_[i] / s;
      shift_[i] = weight_[i] * smoothing / static_cast<C>(p_.vocab);
    }
    for (C* padding : {largest_, scale_, shift_}) std::fill(padding + count_, padding + columns_, C(0));
  }

  void second_pass() {
    constexpr int kCols = kTileCols<C>;
    const int64_t width_panels = ceil_div(p_.width, kCols);
    pack_panels<kCols>(Operand<S>{hidden_, 1, p_.width}, 0, p_.width, 0, width_panels, 0, count_, panels_);
    for_blocks([&](int64_t slice, int64_t begin, int64_t v, int64_t count) {
      differentiate(v, count);
      const GradLogits z = grad_logits(v, count);
      if (p_.grad_weight) add_weight_gradient(z, v, count);
      if (p_.grad_hidden) add_hidden_gradient(z, slice, v == begin, v, count);
    });
    if (!p_.grad_hidden) return;
    parallel_for(count_, p_.threads, [&](int64_t i) {
      C* out = grad_hidden(row_[i]);
      std::copy_n(grad_slice(0) + i * plan_.padded_width, p_.width, out);
      for (int64_t slice = 1; slice < plan_.slices; ++slice) {
        const C* part = grad_slice(slice) + i * plan_.padded_width;
        for (int64_t e = 0; e < p_.width; ++e) out[e] += part[e];
      }
    });
  }

  void differentiate(int64_t v, int64_t count) const {
    for (int64_t n = 0; n < columns_; n += kLanes<C>) {
      const Vec<C> m = load(largest_ + n), scale = load(scale_ + n), shift = load(shift_ + n);
      for (int64_t r = 0; r < count; ++r) {
        C* z = logits(v + r) + n;
        store(z, exponential(load(z) - m) * scale - shift);
      }
    }
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t target = p_.targets[row_[i]];
      if (v <= target && target < v + count)
        logits(target)[i] -= weight_[i] * (C(1) - static_cast<C>(p_.label_smoothing));
    }
  }

  // A block of logits that are their own gradient, as the two products read it: in steps along the rows of
  // hidden, [count, steps]; and in steps along the vocabulary, [steps, padded_rows].
  struct GradLogits {
    const P *by_word, *by_row;
    int64_t word_stride, row_stride;
  };

  GradLogits grad_logits(int64_t v, int64_t count) const {
    const int64_t padded_rows = plan_.padded_rows;
    if constexpr (kIsPair<P>) {
      static_assert(kTileCols<C> == 2 * kLanes<C>);  // of which columns_ is a multiple
      const int64_t words = steps_of<P>(count) * 2, stride = padded_rows / 2;
      P* by_word = workspace<P>(Slot::lhs, static_cast<size_t>(2 * words * stride));
      P* by_row = by_word + words * stride;
      for (int64_t r = 0; r < count; r += 2) {
        for (int64_t n = 0; n < columns_; n += 2 * kLanes<C>) {
          Vec<C> z[2][2] = {};
          for (int i = 0; i < std::min<int64_t>(2, count - r); ++i) {
            z[i][0] = load(logits(v + r + i) + n), z[i][1] = load(logits(v + r + i) + n + kLanes<C>);
          }
          for (int i = 0; i < 2; ++i) {
            store(by_word + (r + i) * stride + n / 2, pair_neighbours(z[i][0], z[i][1]));
            store(by_row + r * stride + n + i * kLanes<C>, pair_lanes(z[0][i], z[1][i]));
          }
        }
      }
      return {by_word, by_row, stride, padded_rows};
    } else {
      return {logits(v), logits(v), padded_rows, padded_rows};
    }
  }

  // The first chunk writes, so no pass of zeros comes before it.
  void add_weight_gradient(const GradLogits& z, int64_t v, int64_t count) const {
    constexpr int kCols = kTileCols<C>;
    const int64_t steps = steps_of<P>(count_);
    for_row_groups<P>(count, [&](int64_t r, auto multiply) {
      C* out = static_cast<C*>(p_.grad_weight) + (v + r) * p_.width;
      for (int64_t e = 0; e < p_.width; e += kCols) {
        const int64_t ahead = std::min<int64_t>(e + kCols, p_.width - 1);
        for (int64_t i = 0; i < std::min<int64_t>(kTileRows, count - r); ++i)
          __builtin_prefetch(out + i * p_.width + ahead, 1);
        if (p_.grad_hidden) prefetch_weight(v + r, std::min<int64_t>(kTileRows, count - r), e);
        multiply(steps, z.by_word + r * z.word_stride, z.word_stride, 1, panels_ + e * steps, kCols, out + e,
                 p_.width, std::min<int64_t>(kCols, p_.width - e), !first_chunk_);
      }
    });
  }

  void add_hidden_gradient(const GradLogits& z, int64_t slice, bool start, int64_t v, int64_t count) const {
    constexpr int kCols = kTileCols<C>;
    const int64_t steps = steps_of<P>(count);
    const Columns w = weight_columns(v, count);
    for (int64_t e = 0; e < p_.width; e += kCols) {
      for (int64_t n = 0; n < count_; n += kTileRows)
        multiply<P, kTileRows>(steps, z.by_row + n, 1, z.row_stride, w.data + e * w.panel_stride, w.stride,
                               grad_slice(slice) + n * plan_.padded_width + e, plan_.padded_width, kCols,
                               !start);
    }
  }

  const LinearCrossEntropy& p_;
  const Widen widen_;
  const bool in_place_;  // W is read where it lies
  const Plan plan_;
  C* const logits_;      // [V, padded_rows]
  S* const hidden_;      // [padded_rows, E] the chunk's rows, zeros after the last
  P* const panels_;      // the same in panels of kTileCols rows, then of kTileCols columns
  C* const grads_;       // [slices, padded_rows, padded_width]
  C* const statistics_;  // [slices, 3, padded_rows]
  bool first_chunk_ = true;

  // The chunk: where its rows are and what they count; what they lose; their softmax.
  int64_t count_ = 0, columns_ = 0;
  int64_t row_[Plan::kMaxRows];
  C weight_[Plan::kMaxRows], loss_[Plan::kMaxRows];
  C largest_[Plan::kMaxRows], scale_[Plan::kMaxRows], shift_[Plan::kMaxRows];
};

}  // namespace

void linear_cross_entropy(const LinearCrossEntropy& p) {
  visit_storage(p.dtype, [&]<class T>(Type<T>) {
    using S = std::conditional_t<kIsPair<Packed<T>>, T, Compute<T>>;
    Run<S>(p, widen<T, S>, !std::is_same_v<T, S>)();
  });
}

}  // namespace glm::cpu::GLM_ISA
