// The register tile that all matrix products here are made of:
//
//   C[kRows][kVectors * lanes] += sum_k A[row][k] * B[k][column]
//
// A is read by broadcast from any strides (a packed panel, or a tile that already lies in L1); B is a panel,
// kVectors vectors contiguous per k. The accumulators stay in registers: kRows * kVectors of them, kVectors
// for B, one for A. The order of the sum is k ascending in one chain, whatever the tile: results do not
// depend on how work is cut.
#pragma once

#include "cpu/simd.h"

namespace glm::cpu::GLM_ISA {

// The tile that fills the register file: 16 registers on AVX2 and SSE, 32 on AVX-512 and NEON.
#if defined(__AVX512F__)
inline constexpr int kTileRows = 12, kTileVectors = 2;
#elif defined(__AVX2__)
inline constexpr int kTileRows = 6, kTileVectors = 2;
#elif defined(__ARM_NEON)
inline constexpr int kTileRows = 8, kTileVectors = 3;
#else
inline constexpr int kTileRows = 4, kTileVectors = 3;
#endif

template <class C>
inline constexpr int kTileCols = kTileVectors * kLanes<C>;

template <class C, int kRows, int kVectors>
struct Tile {
  Vec<C> at[kRows][kVectors];

  GLM_INLINE void clear() {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) at[r][v] = Vec<C>{};
    }
  }

  GLM_INLINE void add(const Tile& other) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) at[r][v] += other.at[r][v];
    }
  }

  // += A B over `depth` steps. a advances by k_stride a step, b by one panel row.
  GLM_INLINE void accumulate(int64_t depth, const C* a, int64_t row_stride, int64_t k_stride, const C* b,
                             int64_t b_stride) {
    Tile sum = *this;  // a local copy is what the compiler keeps in registers
    for (int64_t k = 0; k < depth; ++k) {
      Vec<C> row_b[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) row_b[v] = load(b + v * kLanes<C>);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vec<C> value = broadcast(a[r * row_stride]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum.at[r][v] = fma(value, row_b[v], sum.at[r][v]);
      }
      a += k_stride;
      b += b_stride;
    }
    *this = sum;
  }
};

}  // namespace glm::cpu::GLM_ISA
