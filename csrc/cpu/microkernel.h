// The register tile that all matrix products here are made of:
//
//   C[kRows][kVectors * lanes] += sum_k A[row][k] * B[k][column]
//
// A is read by broadcast from any strides (a packed panel, or a tile that already lies in L1); B is a panel,
// kVectors vectors contiguous per k. The accumulators stay in registers: kRows * kVectors of them, kVectors
// for B, one for A. The order of the sum is k ascending in one chain, whatever the tile: results do not
// depend on how work is cut.
#pragma once

#include "cpu/packed.h"

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

  // += A B over `steps` (cpu/packed.h: C itself, or pairs of bf16). a advances by step_stride a step, b by
  // one panel row. kFetch: a line of `next` a step is brought to L2 meanwhile.
  template <bool kFetch = false, class P>
  GLM_INLINE void accumulate(int64_t steps, const P* a, int64_t row_stride, int64_t step_stride, const P* b,
                             int64_t b_stride, [[maybe_unused]] const P* next = nullptr) {
    static_assert(std::is_same_v<SumOf<P>, C>);
    Tile sum = *this;  // a local copy is what the compiler keeps in registers
    for (int64_t step = 0; step < steps; ++step) {
      if constexpr (kFetch) {
        __builtin_prefetch(next, 0, 2);
        next += 64 / sizeof(P);
      }
      Vec<P> row_b[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) row_b[v] = load(b + v * kLanes<P>);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vec<P> value = broadcast(a[r * row_stride]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum.at[r][v] = multiply_add(value, row_b[v], sum.at[r][v]);
      }
      a += step_stride;
      b += b_stride;
    }
    *this = sum;
  }
};

}  // namespace glm::cpu::GLM_ISA
