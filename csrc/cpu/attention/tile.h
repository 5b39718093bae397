// Register tiles of the attention products.
//
// Queries lie in the lanes. A panel holds kPanelRows queries, transposed: [depth][kPanelRows]. Then all of
//   scores^T = K Q^T      dP^T = V dO^T      out^T += V^T P^T      dQ^T += K^T dS^T
// take keys and values by broadcast from plain rows, softmax needs no sum across lanes, and the probabilities
// are the next product's panel as they lie. Only dK += dS^T Q and dV += P^T dO have D in the lanes.
//
// P is what is multiplied (cpu/packed.h), C what is summed. Of pairs a panel is [depth / 2][kPanelRows], and
// rows lie packed along their depth, or two rows in one, whichever a product sums over; probabilities and
// gradients of scores, computed in C, are rounded to pairs first.
#pragma once

#include <type_traits>

#include "cpu/microkernel.h"
#include "cpu/simd.h"

// The products are functions of their own, never inlined: inside a larger function GCC 12 spills
// accumulators.
//
// After a lambda's parameters: its body belongs to the loop that calls it.
#define GLM_INLINE_BODY __attribute__((always_inline))

namespace glm::cpu::GLM_ISA {

// Vectors of a panel: a multiple of 16 queries, since 16 share their Philox counters.
template <class C>
inline constexpr int kPanelVectors = kLanes<C> >= 8 ? 2 : 16 / kLanes<C>;
template <class C>
inline constexpr int kPanelRows = kPanelVectors<C> * kLanes<C>;

// Rows of a tile of kPanelVectors columns. Any multiple of 8 is a sum of these two.
#if defined(__AVX512F__)
inline constexpr int kTallRows = 12, kShortRows = 8;
#elif defined(__AVX2__) || defined(__ARM_NEON)
inline constexpr int kTallRows = 6, kShortRows = 4;
#else
inline constexpr int kTallRows = 2, kShortRows = 2;
#endif
inline constexpr int64_t kRowMultiple = 8;

// The query at a slot (vector v = slot / lanes) of a panel: the slot itself, but with four lanes, where
// vectors 2g and 2g + 1 hold the queries of the low and of the high halves of one vector of Philox words
// (core/philox.h).
template <class C>
constexpr int slot_row(int slot) {
  if (kLanes<C> >= 8) return slot;
  const int vector = slot / kLanes<C>;
  const int counter = vector / 2 * kLanes<C> + slot % kLanes<C>;
  return counter / 8 * 16 + vector % 2 * 8 + counter % 8;
}

// Where a panel is two vectors, and queries ascend with them, the second sees keys that the first does not:
// they are computed for the second alone.
template <class C>
inline constexpr bool kSplit = kPanelVectors<C> == 2 && kLanes<C> >= 8;

// Calls body(integral_constant<int, height>, row) for tiles that cover rows [0, rows); rows % 8 == 0.
template <class Body>
GLM_INLINE void for_row_tiles(int64_t rows, const Body& body) {
  const int64_t rest = rows % kTallRows;
  const int64_t short_tiles = rest == 0 ? 0 : rest == kShortRows ? 1 : 2;
  const int64_t tall_end = rows - short_tiles * kShortRows;
  int64_t row = 0;
  for (; row < tall_end; row += kTallRows) body(std::integral_constant<int, kTallRows>{}, row);
  for (; row < rows; row += kShortRows) body(std::integral_constant<int, kShortRows>{}, row);
}

// What queries are multiplied with as they are read, and scores after the product: floats take scale * log2(e)
// at once, pairs would round again.
template <class P>
SumOf<P> query_factor(double scale) {
  return kIsPair<P> ? SumOf<P>(1) : static_cast<SumOf<P>>(scale);
}
template <class P>
SumOf<P> score_factor(double scale) {
  return kIsPair<P> ? static_cast<SumOf<P>>(scale) : SumOf<P>(1);
}

// Scores [count][kPanelRows] as add_transposed multiplies them: of pairs two keys in one, written to `packed`,
// which may be their own place.
template <class P, class C = SumOf<P>>
GLM_INLINE const P* pack_keys([[maybe_unused]] int64_t count, const C* scores, [[maybe_unused]] P* packed) {
  if constexpr (kIsPair<P>) {
    for (int64_t key = 0; key < count; key += 2) {
      const C* const from = scores + key * kPanelRows<C>;
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVectors<C>; ++v)
        store(packed + key / 2 * kPanelRows<C> + v * kLanes<C>,
              pair_lanes(load(from + v * kLanes<C>), load(from + kPanelRows<C> + v * kLanes<C>)));
    }
    return packed;
  } else {
    return scores;
  }
}

// out[row][panel] += sum_k a[k][row] * b[k][panel] for `rows` rows (a multiple of 8), the sum so far scaled
// by `factor` per query first: out^T += V^T P^T and dQ^T += K^T dS^T. From k = both on, the panel's second
// vector alone. Strides count steps of P, k does not.
template <class P, bool kScaled, class C = SumOf<P>>
[[gnu::noinline]] void add_transposed(int64_t rows, int64_t both, int64_t depth, const P* a, int64_t a_stride,
                                      const P* b, const Vec<C>* factor, C* out) {
  constexpr int kVectors = kPanelVectors<C>, kWidth = kPanelRows<C>;
  both = steps_of<P>(both), depth = steps_of<P>(depth);
  for_row_tiles(rows, [&](auto height, int64_t row) GLM_INLINE_BODY {
    Tile<C, height.value, kVectors> tile;
    C* const at = out + row * kWidth;
#pragma GCC unroll 16
    for (int r = 0; r < height.value; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        tile.at[r][v] = load(at + r * kWidth + v * kLanes<C>);
        if constexpr (kScaled) tile.at[r][v] *= factor[v];
      }
    }
    tile.accumulate(both, a + row, 1, a_stride, b, kWidth);
    if constexpr (kSplit<C>) {
      if (both < depth) {
        Tile<C, height.value, 1> second;
#pragma GCC unroll 16
        for (int r = 0; r < height.value; ++r) second.at[r][0] = tile.at[r][1];
        second.accumulate(depth - both, a + row + both * a_stride, 1, a_stride, b + both * kWidth + kLanes<C>,
                          kWidth);
#pragma GCC unroll 16
        for (int r = 0; r < height.value; ++r) tile.at[r][1] = second.at[r][0];
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < height.value; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) store(at + r * kWidth + v * kLanes<C>, tile.at[r][v]);
    }
  });
}

}  // namespace glm::cpu::GLM_ISA
