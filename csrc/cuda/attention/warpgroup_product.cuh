// The two matrix products of attention (attention/product.cuh) for one warpgroup on Hopper. They run in the
// background (cuda/wgmma.cuh): what they read and write stays as it is until they have been waited for.
#pragma once

#include "cuda/attention/tile.cuh"
#include "cuda/wgmma.cuh"

namespace glm::cuda {

// sums [64, kN] = rows [row0, row0 + 64) of a, times the kN rows of b.
template <class T, int kN, int kRows, int kDim>
__device__ __forceinline__ void start_row_products(float (&sums)[kN / 8][4], Panel<T, kRows, kDim>& a,
                                                   int row0, Panel<T, kN, kDim>& b) {
  constexpr Major kDepth = Major::depth;
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    const WgmmaOperand left = {&a.block[k / 4][row0][k % 4 * 16]}, right = {&b.block[k / 4][0][k % 4 * 16]};
    if (k == 0) {
      wgmma<T, kDepth, kDepth, false>(sums, left, right);
    } else {
      wgmma<T, kDepth, kDepth, true>(sums, left, right);
    }
  }
}

// P as the left operand, from where start_row_products leaves it.
template <class T, int kN>
__device__ __forceinline__ void narrow_rows(uint32_t (&left)[kN / 16][4], const float (&p)[kN / 8][4]) {
#pragma unroll
  for (int k = 0; k < kN / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      left[k][i] = narrow2<T>(p[k * 2 + i / 2][i % 2 * 2], p[k * 2 + i / 2][i % 2 * 2 + 1]);
}

// sums [64, kOut] += p [64, kN] times the kN rows of b.
template <class T, int kN, int kOut>
__device__ __forceinline__ void start_column_products(float (&sums)[kOut / 8][4],
                                                      const uint32_t (&p)[kN / 16][4],
                                                      Panel<T, kN, kOut>& b) {
#pragma unroll
  for (int k = 0; k < kN / 16; ++k)
    wgmma<T, Major::row, true>(sums, p[k],
                               WgmmaOperand{b.block[0][k * 16], static_cast<int>(sizeof(b.block[0]))});
}

}  // namespace glm::cuda
