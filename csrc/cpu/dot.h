// Dot products of a few rows with vectors where they lie in memory: a product that is not worth packing.
#pragma once

#include <algorithm>

#include "cpu/microkernel.h"
#include "cpu/pack.h"

namespace glm::cpu::GLM_ISA {

// As many rows and columns as keep their sums in registers.
inline constexpr int kDotRows = kTileRows * kTileVectors > 16 ? 4 : 3;
template <class C>
inline constexpr int kDotCols = kTileCols<C> % 4 == 0 ? 4 : 2;

// sums[r][c] = a_r . b_c over `depth`, lane by lane; sums is [kRows][stride]. The rows of a are packed, with zeros
// up to a whole vector; b_c is b[c]. What lies `ahead` elements behind b comes to L2 meanwhile: columns are too
// short for the processor to see where they lead.
template <int kRows, int kCols, class P, class T, class C = SumOf<P>>
[[gnu::noinline]] void dot_sums(int64_t depth, const P* a, int64_t a_stride, const T* const (&b)[kCols],
                                int64_t ahead, Vec<C>* sums, int64_t stride) {
  constexpr int kWhole = kPerStep<P> * kLanes<P>;
  Vec<C> local[kRows][kCols] = {};
  const auto add = [&](int64_t n, int count) __attribute__((always_inline)) {
    Vec<P> row_a[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) row_a[r] = load(a + r * a_stride + n * kLanes<P>);
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) {
      const T* const column = b[c] + n * kWhole;
      __builtin_prefetch(column + ahead, 0, 2);
      const Vec<P> col_b = load_steps<P>(column, count);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) local[r][c] = multiply_add(row_a[r], col_b, local[r][c]);
    }
  };
  // What is left of the depth comes first: after the loop, GCC 12 would spill in it.
  const int64_t vectors = depth / kWhole;
  if (depth % kWhole > 0) add(vectors, static_cast<int>(depth % kWhole));
  for (int64_t n = 0; n < vectors; ++n) add(n, kWhole);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) sums[r * stride + c] = local[r][c];
  }
}

// out[r][c] = a_r . b_c. Columns are taken kDotCols at a time, and lanes added up at the end, of as many sums as a
// vector has.
template <int kRows, int kCols, class P, class T, class C = SumOf<P>>
void dot_products(int64_t depth, const P* a, int64_t a_stride, const T* const (&b)[kCols], int64_t ahead,
                  C* out, int64_t out_stride) {
  static_assert(kCols % kDotCols<C> == 0 && kRows * kCols % kLanes<C> == 0);
  Vec<C> sums[kRows * kCols];
  for (int first = 0; first < kCols; first += kDotCols<C>) {
    const T* cols[kDotCols<C>];
    std::copy_n(b + first, kDotCols<C>, cols);
    dot_sums<kRows>(depth, a, a_stride, cols, ahead, sums + first, kCols);
  }
  C totals[kRows * kCols];
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
    dot_products<kDotRows>(depth, a, a_stride, b, ahead, out, out_stride);
  if (rows == 3) dot_products<3>(depth, a, a_stride, b, ahead, out, out_stride);
  if (rows == 2) dot_products<2>(depth, a, a_stride, b, ahead, out, out_stride);
  if (rows == 1) dot_products<1>(depth, a, a_stride, b, ahead, out, out_stride);
}

}  // namespace glm::cpu::GLM_ISA
