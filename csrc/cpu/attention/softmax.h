// Score tiles: scores^T[key][query slot] of one query panel, their mask and their dropout.
#pragma once

#include "core/span_mask.h"
#include "cpu/attention/layout.h"
#include "cpu/attention/tile.h"
#include "cpu/philox_simd.h"

namespace glm::cpu::GLM_ISA {

// What a panel's queries [i0, i0 + kPanelRows) see of the keys [j0, j0 + count).
template <class C>
struct PanelView {
  int64_t count;         // keys to compute: up to the last one seen, rounded up to kRowMultiple; 0: none
  int64_t both;          // the first of them, computed for all vectors; the others for the second (kSplit)
  bool full;             // every query sees all `count`
  int64_t first;         // keys of the tile before this are padding
  C end[kPanelRows<C>];  // one past the last that a slot sees, counted from j0

  // `rows` bounds the queries that exist, `keys` the keys of the tile.
  PanelView(const SpanMask& mask, int64_t i0, int64_t rows, int64_t j0, int64_t keys) {
    const auto seen_by = [&](int64_t queries) {  // the first of them
      const int64_t end = std::min(mask.seen_end(std::min<int64_t>(i0 + queries, rows)), j0 + keys);
      return end <= std::max(j0, mask.begin) ? 0 : round_up(end - j0, kRowMultiple);
    };
    count = seen_by(kPanelRows<C>);
    both = kSplit<C> ? seen_by(kLanes<C>) : count;
    first = std::max<int64_t>(mask.begin - j0, 0);
    full = first == 0 && mask.full_end(i0) >= j0 + count;
    if (count == 0 || full) return;
    for (int slot = 0; slot < kPanelRows<C>; ++slot)
      end[slot] = static_cast<C>(std::clamp<int64_t>(mask.row_end(i0 + slot_row<C>(slot)) - j0, 0, count));
  }

  // x where key j is visible, else `hidden`.
  GLM_INLINE Vec<C> mask(int64_t j, int v, Vec<C> x, Vec<C> hidden) const {
    return load(end + v * kLanes<C>) >
                   (j < first ? broadcast(static_cast<C>(count)) : broadcast(static_cast<C>(j)))
               ? x
               : hidden;
  }
};

// Calls body(key, keep) for each key of a tile that begins at j0 (a multiple of 64), where keep(v, x) is x
// with the dropped probabilities of vector v zeroed. Without dropout keys come in order.
template <class C, class Body>
GLM_INLINE void for_kept_keys(int64_t count, const Body& body) {
  for (int64_t key = 0; key < count; ++key) body(key, [](int, Vec<C> x) GLM_INLINE_BODY { return x; });
}

template <class Body>
GLM_INLINE void for_kept_keys(const AttentionDropout& dropout, int64_t i0, int64_t j0, int64_t count,
                              const Body& body, VecF) {
  for (int64_t block = 0; block < count; block += 64) {
    for (int64_t c = block; c < std::min(block + 16, count); ++c) {
      PhiloxVectors numbers[kPanelVectors<float> / 2];
#pragma GCC unroll 2
      for (int pair = 0; pair < kPanelVectors<float> / 2; ++pair)
        numbers[pair] = dropout.numbers(static_cast<uint32_t>(i0 / 2 + pair * kLanes<float>), j0 + c);
#pragma GCC unroll 4
      for (int w = 0; w < 4; ++w) {
        if (c + 16 * w >= count) break;
        body(c + 16 * w, [&](int v, VecF x) GLM_INLINE_BODY {
          const VecU word = numbers[v / 2].word[w];
          return v % 2 ? dropout.keep<1>(word, x) : dropout.keep<0>(word, x);
        });
      }
    }
  }
}

// float64 serves gradient checks: one element at a time.
template <class Body>
GLM_INLINE void for_kept_keys(const AttentionDropout& dropout, int64_t i0, int64_t j0, int64_t count,
                              const Body& body, VecD) {
  for (int64_t key = 0; key < count; ++key) {
    body(key, [&](int v, VecD x) GLM_INLINE_BODY {
      for (int lane = 0; lane < kLanes<double>; ++lane) {
        const int64_t i = i0 + slot_row<double>(v * kLanes<double> + lane);
        const uint32_t number = attention_random(dropout.seed, dropout.sequence, dropout.head, i, j0 + key);
        x[lane] = number < dropout.threshold ? x[lane] : 0.0;
      }
      return x;
    });
  }
}

}  // namespace glm::cpu::GLM_ISA
