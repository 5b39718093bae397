// Dot products of a few rows with vectors where they lie in memory: a product that is not worth packing.
#pragma once

#include "cpu/packed.h"

namespace glm::cpu::GLM_ISA {

// out[r][c] = a_r . b_c over `depth`. The rows of a are packed, with zeros up to a whole vector; b_c is b[c].
template <int kRows, int kCols, class P, class T, class C = SumOf<P>>
[[gnu::noinline]] void dot_products(int64_t depth, const P* a, int64_t a_stride, const T* const (&b)[kCols],
                                    C* out, int64_t out_stride) {
  constexpr int kWhole = kPerStep<P> * kLanes<P>;
  Vec<C> sums[kRows][kCols] = {};
  const auto add = [&](int64_t k, int count) {
    Vec<P> row_a[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) row_a[r] = load(a + r * a_stride + k / kPerStep<P>);
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) {
      const Vec<P> col_b = load_steps<P>(b[c] + k, count);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sums[r][c] = multiply_add(row_a[r], col_b, sums[r][c]);
    }
  };
  int64_t k = 0;
  for (; k + kWhole <= depth; k += kWhole) add(k, kWhole);
  if (k < depth) add(k, static_cast<int>(depth - k));
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kCols; ++c) out[r * out_stride + c] = reduce_add(sums[r][c]);
  }
}

// The same for any number of rows: b is read from memory once and then from L1.
template <int kCols, class P, class T, class C = SumOf<P>>
void dot_products_rows(int64_t rows, int64_t depth, const P* a, int64_t a_stride, const T* const (&b)[kCols],
                       C* out, int64_t out_stride) {
  for (; rows >= 4; rows -= 4, a += 4 * a_stride, out += 4 * out_stride)
    dot_products<4>(depth, a, a_stride, b, out, out_stride);
  if (rows == 3) dot_products<3>(depth, a, a_stride, b, out, out_stride);
  if (rows == 2) dot_products<2>(depth, a, a_stride, b, out, out_stride);
  if (rows == 1) dot_products<1>(depth, a, a_stride, b, out, out_stride);
}

}  // namespace glm::cpu::GLM_ISA
