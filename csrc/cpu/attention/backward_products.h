// The products of attention backward that forward has not, and the step from scores to their gradients.
#pragma once

#include "cpu/attention/softmax.h"

namespace glm::cpu::GLM_ISA {

// out[key][slot] = sum_d a[key][d] b[d][slot] of keys [begin, end) and the panel's vectors from kFirst on.
template <class P, int kFirst, class C = SumOf<P>>
GLM_INLINE void multiply_keys(int64_t begin, int64_t end, int64_t steps, const P* a, int64_t stride,
                              const P* b, C* out) {
  constexpr int kVectors = kPanelVectors<C> - kFirst, kWidth = kPanelRows<C>;
  for_row_tiles(end - begin, [&](auto height, int64_t row) GLM_INLINE_BODY {
    const int64_t key = begin + row;
    Tile<C, height.value, kVectors> tile;
    tile.clear();
    tile.accumulate(steps, a + key * stride, stride, 1, b + kFirst * kLanes<C>, kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < height.value; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        store(out + (key + r) * kWidth + (kFirst + v) * kLanes<C>, tile.at[r][v]);
    }
  });
}

template <class P, class C = SumOf<P>>
[[gnu::noinline]] void multiply_panel(const PanelView<C>& view, int64_t steps, const P* a, int64_t stride,
                                      const P* b, C* out) {
  multiply_keys<P, 0>(0, view.both, steps, a, stride, b, out);
  if constexpr (kSplit<C>) multiply_keys<P, 1>(view.both, view.count, steps, a, stride, b, out);
}

// out[slot] = sum_d a[d][slot] b[d][slot], in the order of multiply_panel: a row that sees one key has an
// exact zero in dP - delta.
template <class P, class C = SumOf<P>>
void multiply_slots(int64_t steps, const P* a, const P* b, C* out) {
  for (int slot = 0; slot < kPanelRows<C>; slot += kLanes<C>) {
    Vec<C> sum = {};
    for (int64_t n = 0; n < steps; ++n)
      sum = multiply_add(load(a + n * kPanelRows<C> + slot), load(b + n * kPanelRows<C> + slot), sum);
    store(out + slot, sum);
  }
}

// Scores [key][kPanelRows] as add_columns multiplies them, in their place: of pairs two slots in one. A tile of
// keys may reach past those that a vector of the panel sees, `both` the first and `seen` the others: there it
// finds zeros.
template <class P, class C = SumOf<P>>
void pack_slots(int64_t both, int64_t seen, int64_t most, C* scores) {
  constexpr int kWidth = kPanelRows<C>, kVectors = kPanelVectors<C>;
  if constexpr (kIsPair<P>) {
    static_assert(kVectors == 2);
    P* const packed = reinterpret_cast<P*>(scores);
    for (int64_t key = 0; key < std::min(most, seen + kTallRows); ++key) {
      const C* const from = scores + key * kWidth;
      store(packed + key * kLanes<P>, pair_neighbours(key < both ? load(from) : Vec<C>{},
                                                      key < seen ? load(from + kLanes<C>) : Vec<C>{}));
    }
  } else {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t first = kSplit<C> && v == 0 ? both : seen;
      for (int64_t key = first; key < std::min(most, first + kTallRows); ++key)
        store(scores + key * kWidth + v * kLanes<C>, Vec<C>{});
    }
  }
}

// out[key][d] += sum_slot a[key][slot] b[slot][d] over kVectors vectors of d and the panels that a tile of
// keys is seen by: panel p sees seen[p] keys, none fewer than the one before, with both vectors both[p].
template <class P, int kVectors, class C = SumOf<P>>
[[gnu::noinline]] void add_columns(int64_t keys, const int64_t* seen, const int64_t* both, int64_t panels,
                                   const P* a, int64_t a_panel, const P* b, C* out, int64_t stride) {
  constexpr int kWidth = kPanelRows<C> / kPerStep<P>;
  for_row_tiles(keys, [&](auto height, int64_t key) GLM_INLINE_BODY {
    Tile<C, height.value, kVectors> tile;
    C* const at = out + key * stride;
#pragma GCC unroll 16
    for (int r = 0; r < height.value; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) tile.at[r][v] = load(at + r * stride + v * kLanes<C>);
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
      if (seen[panel] <= key) continue;
      const int64_t first = kSplit<C> && both[panel] <= key ? kLanes<C> / kPerStep<P> : 0;
      tile.accumulate(kWidth - first, a + panel * a_panel + key * kWidth + first, kWidth, 1,
                      b + (panel * kWidth + first) * stride, stride);
    }
#pragma GCC unroll 16
    for (int r = 0; r < height.value; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) store(at + r * stride + v * kLanes<C>, tile.at[r][v]);
    }
  });
}

// From scores, times `factor`, and dP to (dropped) probabilities and dS, in place.
template <class C, bool kMasked>
GLM_INLINE auto score_gradients(const PanelView<C>& view, C factor, C keep_scale, const C* lse,
                                const C* delta, C* probs, C* grads) {
  return [=, &view](int64_t key, const auto& keep) GLM_INLINE_BODY {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors<C>; ++v) {
      if (kMasked && kSplit<C> && v == 0 && key >= view.both) continue;
      const int64_t at = key * kPanelRows<C> + v * kLanes<C>;
      Vec<C> p = exp2_below_128(fma(load(probs + at), broadcast(factor), -load(lse + v * kLanes<C>)));
      if constexpr (kMasked) p = view.mask(key, v, p, Vec<C>{});
      store(grads + at,
            p * fma(keep(v, load(grads + at)), broadcast(keep_scale), -load(delta + v * kLanes<C>)));
      store(probs + at, keep(v, p));
    }
  };
}

}  // namespace glm::cpu::GLM_ISA
