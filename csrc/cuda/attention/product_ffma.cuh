// The two matrix products of attention (attention/product.cuh) in float32 by FFMA. Each product is rounded once,
// with the sum that it is added to, in the order of the depth: a chain of fmaf. Chains over 32 or 16 of the depth
// start from zero and are added to the whole, since one over all of it rounds more than plain torch does. Sums
// lie where an mma leaves them. A probability of 1 gives a value to its last bit, and swapped operands the same
// bits.
#pragma once

#include <cmath>

#include "cuda/attention/tile.cuh"

namespace glm::cuda {

inline constexpr int kRowChain = 32, kColumnChain = 16;  // products of a chain

// sums [16 kM, kN] += rows row0... of a, times the kN rows of b, 4 of the depth at a time.
template <int kN, int kM, int kRows, int kDim>
__device__ __forceinline__ void add_row_products_ffma(float (&sums)[kM][kN / 8][4],
                                                      Panel<float, kRows, kDim>& a, int row0,
                                                      Panel<float, kN, kDim>& b, int lane) {
  const auto four = [](auto& panel, int row, int chunk) {
    return load_shared(reinterpret_cast<const Pack<float, 4>*>(chunk_at(panel, row, chunk)));
  };
#pragma unroll 1
  for (int first = 0; first < kDim / 4; first += kRowChain / 4) {
    float chains[kM][kN / 8][4] = {};
#pragma unroll 2  // all of them at once spilled
    for (int chunk = first; chunk < first + kRowChain / 4; ++chunk) {
      Pack<float, 4> left[kM][2];
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          left[m][half] = four(a, row0 + m * 16 + half * 8 + lane / 4, chunk);
#pragma unroll
      for (int j = 0; j < kN / 8; ++j)
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const Pack<float, 4> right = four(b, j * 8 + lane % 4 * 2 + odd, chunk);
#pragma unroll
          for (int k = 0; k < 4; ++k)
#pragma unroll
            for (int m = 0; m < kM; ++m)
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                float& sum = chains[m][j][half * 2 + odd];
                sum = fmaf(left[m][half].value[k], right.value[k], sum);
              }
        }
    }
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int j = 0; j < kN / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][j][i] += chains[m][j][i];
  }
}

// sums [16 kM, kOut] += p [16 kM, kN], as add_row_products_ffma leaves it, times the kN rows of b. What a lane
// needs of p, rows g and g + 8 of every column, it gets from the four lanes that hold it.
template <int kN, int kOut, int kM>
__device__ __forceinline__ void add_column_products_ffma(float (&sums)[kM][kOut / 8][4],
                                                         const float (&p)[kM][kN / 8][4],
                                                         Panel<float, kN, kOut>& b, int lane) {
  const int own[2] = {lane % 4 * 2, lane % 4 * 2 ^ 4};  // columns 2t and 2t + 1 in even rows; in odd ones
#pragma unroll
  for (int first = 0; first < kN; first += kColumnChain) {
    float left[kM][kColumnChain][2];
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int k = 0; k < kColumnChain; ++k)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          left[m][k][half] = __shfl_sync(kAllLanes, p[m][(first + k) / 8][half * 2 + k % 2], k % 8 / 2, 4);
#pragma unroll
    for (int d = 0; d < kOut / 8; ++d) {
      float chains[kM][4] = {};
#pragma unroll
      for (int k = 0; k < kColumnChain; ++k) {
        const float* at = b.block[d / 4][first + k] + own[k % 2] + (d % 4 ^ k % 8 / 2) * 8;
        const auto right = load_shared(reinterpret_cast<const Pack<float, 2>*>(at));
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            chains[m][i] = fmaf(left[m][k][i / 2], right.value[i % 2], chains[m][i]);
      }
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][d][i] += chains[m][i];
    }
  }
}

}  // namespace glm::cuda
