// Dot products of a few rows with vectors where they lie in memory: a product that is not worth packing.
#pragma once

#include <algorithm>

#include "cpu/microkernel.h"
#include "cpu/pack.h"

namespace glm::cpu::GLM_ISA {

// As many rows as keep kDotRows x 4 sums in registers.
inline constexpr int kDotRows = kTileRows * kTileVectors > 16 ? 4 : 3;

// out[r][c] = a_r . b_c over `depth`. The rows of a are packed, with zeros up to a whole vector; b_c is b[c].
template <int kRows, int kCols, class P, class T, class C = SumOf<P>>
[[gnu::noinline]] void dot_products(int64_t depth, const P* a, int64_t a_stride, const T* const (&b)[kCols],
                                    C* out, int64_t out_stride) {
  constexpr int kWhole = kPerStep<P> * kLanes<P>;
  Vec<C> sums[kRows][kCols] = {};
  const auto add = [&](const P* rows, const T* const(&cols)[kCols], int64_t vectors) {
    for (int64_t n = 0; n < vectors; ++n) {
      Vec<P> row_a[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) row_a[r] = load(rows + r * a_stride + n * kLanes<P>);
#pragma GCC unroll 4
      for (int c = 0; c < kCols; ++c) {
        const Vec<P> col_b = load_steps<P>(cols[c] + n * kWhole, kWhole);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sums[r][c] = multiply_add(row_a[r], col_b, sums[r][c]);
      }
    }
  };
  const int64_t vectors = depth / kWhole, rest = depth % kWhole;
  add(a, b, vectors);
  if (rest > 0) {
    T last[kCols][kWhole] = {};
    const T* cols[kCols];
    for (int c = 0; c < kCols; ++c) {
      std::copy_n(b[c] + vectors * kWhole, rest, last[c]);
      cols[c] = last[c];
    }
    add(a + vectors * kLanes<P>, cols, 1);
  }
  C totals[kRows * kCols + kLanes<C>];
  for (int first = 0; first < kRows * kCols; first += kLanes<C>) {
    Vec<C> lanes[kLanes<C>];
    for (int i = 0; i < kLanes<C>; ++i)
      lanes[i] = first + i < kRows * kCols ? sums[(first + i) / kCols][(first + i) % kCols] : Vec<C>{};
    store(totals + first, reduce_each<C>(lanes));
  }
  for (int r = 0; r < kRows; ++r) std::copy_n(totals + r * kCols, kCols, out + r * out_stride);
}

// The same for any number of rows: b is read from memory once and then from L1.
template <int kCols, class P, class T, class C = SumOf<P>>
void dot_products_rows(int64_t rows, int64_t depth, const P* a, int64_t a_stride, const T* const (&b)[kCols],
                       C* out, int64_t out_stride) {
  for (; rows >= kDotRows; rows -= kDotRows, a += kDotRows * a_stride, out += kDotRows * out_stride)
    dot_products<kDotRows>(depth, a, a_stride, b, out, out_stride);
  if (rows == 3) dot_products<3>(depth, a, a_stride, b, out, out_stride);
  if (rows == 2) dot_products<2>(depth, a, a_stride, b, out, out_stride);
  if (rows == 1) dot_products<1>(depth, a, a_stride, b, out, out_stride);
}

}  // namespace glm::cpu::GLM_ISA
