// Products of tiles whose left side, and sum, are read and written where they lie in memory, at any strides:
// for sums that grow chunk by chunk, and sides that are too large to be packed.
#pragma once

#include <algorithm>

#include "cpu/microkernel.h"

namespace glm::cpu::GLM_ISA {

// c[kRows][cols] = or += a b, `cols` (at most a tile's) of them. b's tile is whole.
template <class P, int kRows, class C = SumOf<P>>
[[gnu::noinline]] void multiply(int64_t steps, const P* a, int64_t a_stride, int64_t a_step_stride,
                                const P* b, int64_t b_stride, C* c, int64_t c_stride, int64_t cols,
                                bool add) {
  Tile<C, kRows, kTileVectors> tile;
  const auto for_vectors = [&](const auto& body) {
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kTileVectors; ++v) {
        const int64_t count = std::min<int64_t>(kLanes<C>, cols - v * kLanes<C>);
        if (count > 0) body(tile.at[r][v], c + r * c_stride + v * kLanes<C>, static_cast<int>(count));
      }
    }
  };
  tile.clear();
  if (add) for_vectors([](Vec<C>& sum, const C* p, int count) { sum = load_as_some(p, count); });
  tile.accumulate(steps, a, a_stride, a_step_stride, b, b_stride);
  for_vectors([](const Vec<C>& sum, C* p, int count) { store_as_some(p, sum, count); });
}

// Calls body(r, multiply) for groups of [0, rows): whole tiles, then single rows.
template <class P, class Body>
GLM_INLINE void for_row_groups(int64_t rows, const Body& body) {
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) body(r, multiply<P, kTileRows>);
  for (; r < rows; ++r) body(r, multiply<P, 1>);
}

}  // namespace glm::cpu::GLM_ISA
