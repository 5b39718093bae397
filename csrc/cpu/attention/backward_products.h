// The products of attention backward that forward has not, and the step from scores to their gradients.
#pragma once

#include "cpu/attention/softmax.h"

namespace glm::cpu::GLM_ISA {

// out[key][slot] = sum_d a[key][d] b[d][slot] of keys [begin, end) and the panel's vectors from kFirst on.
template <class C, int kFirst>
GLM_INLINE void multiply_keys(int64_t begin, int64_t end, int64_t depth, const C* a, int64_t stride,
                              const C* b, C* out) {
  constexpr int kVectors = kPanelVectors<C> - kFirst, kWidth = kPanelRows<C>;
  for_row_tiles(end - begin, [&](auto height, int64_t row) GLM_INLINE_BODY {
    const int64_t key = begin + row;
    Tile<C, height.value, kVectors> tile;
    tile.clear();
    tile.accumulate(depth, a + key * stride, stride, 1, b + kFirst * kLanes<C>, kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < height.value; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        store(out + (key + r) * kWidth + (kFirst + v) * kLanes<C>, tile.at[r][v]);
    }
  });
}

template <class C>
[[gnu::noinline]] void multiply_panel(const PanelView<C>& view, int64_t depth, const C* a, int64_t stride,
                                      const C* b, C* out) {
  multiply_keys<C, 0>(0, view.both, depth, a, stride, b, out);
  if constexpr (kSplit<C>) multiply_keys<C, 1>(view.both, view.count, depth, a, stride, b, out);
}

// out[slot] = sum_d a[d][slot] b[d][slot], in the order of multiply_panel: a row that sees one key has an
// exact zero in dP - delta.
template <class C>
void multiply_slots(int64_t depth, const C* a, const C* b, C* out) {
  for (int slot = 0; slot < kPanelRows<C>; slot += kLanes<C>) {
    Vec<C> sum = {};
    for (int64_t d = 0; d < depth; ++d)
      sum = fma(load(a + d * kPanelRows<C> + slot), load(b + d * kPanelRows<C> + slot), sum);
    store(out + slot, sum);
  }
}

// out[key][d] += sum_slot a[key][slot] b[slot][d] over kVectors vectors of d and the panels that a tile of
// keys is seen by: panel p sees seen[p] keys, none fewer than the one before, with both vectors both[p].
template <class C, int kVectors>
[[gnu::noinline]] void add_columns(int64_t keys, const int64_t* seen, const int64_t* both, int64_t panels,
                                   const C* a, int64_t a_panel, const C* b, C* out, int64_t stride) {
  constexpr int kWidth = kPanelRows<C>;
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
      const int64_t first = kSplit<C> && both[panel] <= key ? kLanes<C> : 0;
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

// From scores and dP to (dropped) probabilities and dS, in place.
template <class C, bool kMasked>
GLM_INLINE auto score_gradients(const PanelView<C>& view, C keep_scale, const C* lse, const C* delta,
                                C* probs, C* grads) {
  return [=, &view](int64_t key, const auto& keep) GLM_INLINE_BODY {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors<C>; ++v) {
      if (kMasked && kSplit<C> && v == 0 && key >= view.both) continue;
      const int64_t at = key * kPanelRows<C> + v * kLanes<C>;
      Vec<C> p = exp2_below_128(load(probs + at) - load(lse + v * kLanes<C>));
      if constexpr (kMasked) p = view.mask(key, v, p, Vec<C>{});
      store(grads + at,
            p * fma(keep(v, load(grads + at)), broadcast(keep_scale), -load(delta + v * kLanes<C>)));
      store(probs + at, keep(v, p));
    }
  };
}

}  // namespace glm::cpu::GLM_ISA
