// The two matrix products of attention for one warp, on tiles in shared memory and sums in registers:
//
//   add_row_products     [16 kM, kN] += A [16 kM, D] B [kN, D]^T    scores, and their gradients
//   add_column_products  [16 kM, D]  += P [16 kM, kN] B [kN, D]     what a row gathers; P stays in registers
//   add_column_products_transposed  [16, D] += P [kN, 16]^T B [kN, D]   the same, P in shared memory
//
// A 16-byte chunk of a row is 8 bf16 or f16 elements, or 4 floats, and two chunks are the depth of one mma
// either way: 16-bit products are m16n8k16, float ones three m16n8k8 on tf32 (Tf32Pair), or, on request, FFMA
// (attention/product_ffma.cuh).
//
// An mma cuts off what it adds to its accumulator, always towards zero, and in float that is more than the
// rule allows after some ten of them. So sums of floats over a depth of 8, or of 32 where there is room, start
// from zero, and are added to the whole by the cores that round.
#pragma once

#include "cuda/attention/product_ffma.cuh"
#include "cuda/attention/tile.cuh"

namespace glm::cuda {

// What multiplies: tensor cores for a warp, those of Hopper for a warpgroup (16 bits), the float units (float).
enum class Products : int { mma, warpgroup, ffma };

// The left operand of an mma, ready for use.
template <class T>
struct LeftFragment {
  uint32_t word[4];
  LeftFragment() = default;
  __device__ __forceinline__ explicit LeftFragment(const uint32_t (&words)[4])
      : word{words[0], words[1], words[2], words[3]} {}
};

template <>
struct LeftFragment<float> {
  uint32_t big[4], small[4];
  LeftFragment() = default;
  __device__ __forceinline__ explicit LeftFragment(const uint32_t (&words)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Tf32Pair pair(std::bit_cast<float>(words[i]));
      big[i] = pair.big;
      small[i] = pair.small;
    }
  }
};

// d += a b in the accumulator of the mma. kSwapped: the bits of the product with both operands swapped.
// kExact: a 1 in `a` gives the float of b to its last bit, which takes a third part of b.
template <class T, bool kSwapped = false, bool kExact = false>
__device__ __forceinline__ void accumulate(float (&d)[4], const LeftFragment<T>& a, uint32_t b0,
                                           uint32_t b1) {
  if constexpr (std::is_same_v<T, float>) {
    const float x = std::bit_cast<float>(b0), y = std::bit_cast<float>(b1);
    const Tf32Pair first(x), second(y);
    if constexpr (kExact) mma_16x8x8_tf32(d, a.big, {first.rest(x), second.rest(y)});
    if constexpr (kSwapped) mma_16x8x8_tf32(d, a.big, {first.small, second.small});
    mma_16x8x8_tf32(d, a.small, {first.big, second.big});
    if constexpr (!kSwapped) mma_16x8x8_tf32(d, a.big, {first.small, second.small});
    mma_16x8x8_tf32(d, a.big, {first.big, second.big});
  } else {
    mma_16x8x16<T>(d, a.word, {b0, b1});
  }
}

// d += a b, of floats with a sum of its own.
template <class T, bool kSwapped = false>
__device__ __forceinline__ void multiply(float (&d)[4], const LeftFragment<T>& a, uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, float>) {
    float sum[4] = {};
    accumulate<T, kSwapped>(sum, a, b0, b1);
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] += sum[i];
  } else {
    accumulate<T>(d, a, b0, b1);
  }
}

// sums [16 kM, kN] += rows row0... of a, times the kN rows of b. Lane (g, t) = (lane / 4, lane % 4) holds
// rows g and g + 8 of each 16, and of each 8 columns 2t and 2t + 1.
template <Products kProducts, class T, int kN, bool kSwapped = false, int kM, int kRows, int kDim>
__device__ __forceinline__ void add_row_products(float (&sums)[kM][kN / 8][4], Panel<T, kRows, kDim>& a,
                                                 int row0, Panel<T, kN, kDim>& b, int lane) {
  if constexpr (kProducts == Products::ffma) {
    add_row_products_ffma<kN>(sums, a, row0, b, lane);
  } else {
    // Two steps of floats at once spilled; one has mma enough to hide its loads.
    constexpr int kSteps = std::is_same_v<T, float> ? 1 : 2;
#pragma unroll kSteps
    for (int k = 0; k < kDim / (2 * kChunk<T>); ++k) {
      LeftFragment<T> left[kM];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        uint32_t words[4];
        load_matrices(words, chunk_at(a, row0 + m * 16 + lane % 16, k * 2 | lane / 16));
        left[m] = LeftFragment<T>(words);
      }
#pragma unroll
      for (int j = 0; j < kN / 16; ++j) {
        uint32_t right[4];
        load_matrices(right, chunk_at(b, j * 16 + lane % 8 + lane / 16 * 8, k * 2 | lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          multiply<T, kSwapped>(sums[m][j * 2], left[m], right[0], right[1]);
          multiply<T, kSwapped>(sums[m][j * 2 + 1], left[m], right[2], right[3]);
        }
      }
    }
  }
}

// sums [16 kM, kOut] += left [16 kM, 16], 16-bit elements, times rows k * 16... of b, columns column0...
template <class T, int kOut, int kM, int kN, int kDim>
__device__ __forceinline__ void add_sixteen(float (&sums)[kM][kOut / 8][4], const LeftFragment<T> (&left)[kM],
                                            Panel<T, kN, kDim>& b, int k, int lane, int column0 = 0) {
#pragma unroll
  for (int d = 0; d < kOut / 16; ++d) {
    uint32_t right[4];
    load_matrices<4, true>(right, chunk_at(b, k * 16 + lane % 16, column0 / 8 + d * 2 | lane / 16));
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      multiply<T>(sums[m][d * 2], left[m], right[0], right[1]);
      multiply<T>(sums[m][d * 2 + 1], left[m], right[2], right[3]);
    }
  }
}

// sums [16 kM, kOut] += p [16 kM, kN], as add_row_products leaves it, times the kN rows of b.
template <Products kProducts, class T, int kN, int kOut, bool kExact = false, int kM>
__device__ __forceinline__ void add_column_products(float (&sums)[kM][kOut / 8][4],
                                                    const float (&p)[kM][kN / 8][4], Panel<T, kN, kOut>& b,
                                                    int lane) {
  if constexpr (kProducts == Products::ffma) {
    add_column_products_ffma<kN, kOut>(sums, p, b, lane);
  } else if constexpr (std::is_same_v<T, float>) {
    // What the mma takes for columns t and t + 4 of p, and rows t and t + 4 of b, are 2t and 2t + 1 in both.
    constexpr int kGroup = kN / 8 < 4 ? kN / 8 : 4;  // eights of the depth that share a sum
    constexpr int kBlock = kOut == 128 ? 4 : 8;      // eights of columns, of which nothing is started early
    // The lane's place among 8 chunks; in others of them than the first some of these bits are turned.
    const int own = lane % 4 * 2 * 32 + (lane / 16 ^ lane % 4 * 2) * 4 + lane / 4 % 4;
#pragma unroll
    for (int k0 = 0; k0 < kN / 8; k0 += kGroup) {
      LeftFragment<T> left[kM][kGroup];
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          const float (&words)[4] = p[m][k0 + k];
          left[m][k] =
              LeftFragment<T>({std::bit_cast<uint32_t>(words[0]), std::bit_cast<uint32_t>(words[2]),
                               std::bit_cast<uint32_t>(words[1]), std::bit_cast<uint32_t>(words[3])});
        }
#pragma unroll
      for (int d = 0; d < kOut / 8; ++d) {
        if (d > 0 && d % kBlock == 0 && never()) break;
        float sum[kM][4] = {};
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          uint32_t right[2];
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) {
            const T* at = b.block[d / 4][(k0 + k) * 8 + odd] + (own ^ (d % 4 * 2 | odd) * 4);
            right[odd] = std::bit_cast<uint32_t>(load_shared(at));
          }
#pragma unroll
          for (int m = 0; m < kM; ++m) accumulate<T, false, kExact>(sum[m], left[m][k], right[0], right[1]);
        }
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[m][d][i] += sum[m][i];
      }
    }
  } else {
#pragma unroll
    for (int k = 0; k < kN / 16; ++k) {
      LeftFragment<T> left[kM];
#pragma unroll
      for (int m = 0; m < kM; ++m)
        left[m] = LeftFragment<T>({narrow2<T>(p[m][k * 2][0], p[m][k * 2][1]),
                                   narrow2<T>(p[m][k * 2][2], p[m][k * 2][3]),
                                   narrow2<T>(p[m][k * 2 + 1][0], p[m][k * 2 + 1][1]),
                                   narrow2<T>(p[m][k * 2 + 1][2], p[m][k * 2 + 1][3])});
      add_sixteen<T, kOut>(sums, left, b, k, lane);
    }
  }
}

// sums [16, kOut] += columns [row0, row0 + 16) of p, transposed, times columns [column0, column0 + kOut) of b.
// 16-bit elements.
template <class T, int kOut, int kN, int kColumns, int kDim>
__device__ __forceinline__ void add_column_products_transposed(float (&sums)[1][kOut / 8][4],
                                                               Panel<T, kN, kColumns>& p, int row0,
                                                               Panel<T, kN, kDim>& b, int column0, int lane) {
#pragma unroll 2  // four steps at once spilled
  for (int k = 0; k < kN / 16; ++k) {
    uint32_t words[4];
    load_matrices<4, true>(words, chunk_at(p, k * 16 + lane / 16 * 8 + lane % 8, row0 / 8 + lane / 8 % 2));
    const LeftFragment<T> left[1] = {LeftFragment<T>(words)};
    add_sixteen<T, kOut>(sums, left, b, k, lane, column0);
  }
}

}  // namespace glm::cuda
