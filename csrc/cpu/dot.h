// Dot products of a few rows with vectors where they lie in memory: a product that is not worth packing.
#pragma once

#include <algorithm>

#include "cpu/microkernel.h"
#include "cpu/pack.h"

namespace glm::cpu::GLM_ISA {

// As many rows as keep kDotRows x 4 sums in registers.
inline constexpr int kDotRows = kTileRows * kTileVectors > 16 ? 4 : 3;

// sums[r][c] += a_r . b_c, lane by lane, over `vectors` vectors of steps; sums is [kRows][stride]. What lies
// `ahead` elements behind b comes to L2 meanwhile: columns are too short for the processor to see where they
// lead.
template <int kRows, int kCols, class P, class T, class C = SumOf<P>>
[[gnu::noinline]] void add_dot_products(int64_t vectors, const P* a, int64_t a_stride,
                                        const T* const (&b)[kCols], int64_t ahead, Vec<C>* sums,
                                        int64_t stride) {
  constexpr int kWhole = kPerStep<P> * kLanes<P>;
  Vec<C> local[kRows][kCols];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) local[r][c] = sums[r * stride + c];
  }
  for (int64_t n = 0; n < vectors; ++n) {
    Vec<P> row_a[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) row_a[r] = load(a + r * a_stride + n * kLanes<P>);
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) {
      __builtin_prefetch(b[c] + n * kWhole + ahead, 0, 2);
      const Vec<P> col_b = load_steps<P>(b[c] + n * kWhole, kWhole);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) local[r][c] = multiply_add(row_a[r], col_b, local[r][c]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) sums[r * stride + c] = local[r][c];
  }
}

// out[r][c] = a_r . b_c over `depth`. The rows of a are packed, with zeros up to a whole vector; b_c is b[c].
// Columns are taken kGroup at a time; lanes are added up at the end, of as many sums as a vector has.
template <int kRows, int kCols, int kGroup, class P, class T, class C = SumOf<P>>
void dot_products(int64_t depth, const P* a, int64_t a_stride, const T* const (&b)[kCols], int64_t ahead,
                  C* out, int64_t out_stride) {
  static_assert(kCols % kGroup == 0);
  constexpr int kWhole = kPerStep<P> * kLanes<P>;
  const int64_t vectors = depth / kWhole, rest = depth % kWhole;
  Vec<C> sums[kRows * kCols + kLanes<C>] = {};
  for (int first = 0; first < kCols; first += kGroup) {
    const T* cols[kGroup];
    std::copy_n(b + first, kGroup, cols);
    add_dot_products<kRows>(vectors, a, a_stride, cols, ahead, sums + first, kCols);
    if (rest == 0) continue;
    T last[kGroup][kWhole] = {};
    for (int c = 0; c < kGroup; ++c) {
      std::copy_n(cols[c] + vectors * kWhole, rest, last[c]);
      cols[c] = last[c];
    }
    add_dot_products<kRows>(1, a + vectors * kLanes<P>, a_stride, cols, 0, sums + first, kCols);
  }
  C totals[kRows * kCols + kLanes<C>];
  for (int first = 0; first < kRows * kCols; first += kLanes<C>) {
    Vec<C> lanes[kLanes<C>];
    std::copy_n(sums + first, kLanes<C>, lanes);
    store(totals + first, reduce_each<C>(lanes));
  }
  for (int r = 0; r < kRows; ++r) std::copy_n(totals + r * kCols, kCols, out + r * out_stride);
}

// The same for any number of rows: b is read from memory once and then from the caches.
template <int kCols, class P, class T, class C = SumOf<P>>
void dot_products_rows(int64_t rows, int64_t depth, const P* a, int64_t a_stride, const T* const (&b)[kCols],
                       int64_t ahead, C* out, int64_t out_stride) {
  for (; rows >= kDotRows;
       rows -= kDotRows, a += kDotRows * a_stride, out += kDotRows * out_stride, ahead = 0)
    dot_products<kDotRows, kCols, kCols>(depth, a, a_stride, b, ahead, out, out_stride);
  if (rows == 3) dot_products<3, kCols, kCols>(depth, a, a_stride, b, ahead, out, out_stride);
  if (rows == 2) dot_products<2, kCols, kCols>(depth, a, a_stride, b, ahead, out, out_stride);
  if (rows == 1) dot_products<1, kCols, kCols>(depth, a, a_stride, b, ahead, out, out_stride);
}

}  // namespace glm::cpu::GLM_ISA
