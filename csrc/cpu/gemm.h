// The matrix product that everything here uses, with work done on the way in and on the way out:
//
//   C[i][j] = sum_k a(i, k) b(j, k)        i < rows, j < cols, k < depth
//
// a and b are operands (cpu/pack.h): where element (i, k) is, how it is widened, and perhaps a function of
// it. So a transpose is a choice of strides, and gelu(x) W needs no gelu(x) in memory. Each operand is packed
// once into panels as wide as the register tile; blocks of C that fit a core's L2 are then handed out; each
// finished tile goes to the epilogue, which adds a bias, stores, sums columns, whatever the caller wants:
//
//   epilogue(tile, row, col, rows, cols)          Tile<C>&; only the first rows x cols of its elements exist
//   epilogue.prefetch(row, col, rows, cols)       just before that tile's last chain
//
// An element is a sum, in order, of chains of multiply-adds over kDepthBlock steps of k (with up to
// kDotMaxRows rows: the sum of a chain per lane), however the blocks are cut. A step is one k, or a pair of them (cpu/packed.h). The tiles of one
// block (kBlockRows x kBlockCols, both aligned) come to the epilogue from one thread, column of tiles by
// column of tiles, rows ascending: partial sums by row / kBlockRows or by col / kBlockCols need no locks and
// are the same bits for every thread count.
#pragma once

#include <algorithm>

#include "cpu/dot.h"
#include "cpu/microkernel.h"
#include "cpu/pack.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace glm::cpu::GLM_ISA {

template <class C>
using GemmTile = Tile<C, kTileRows, kTileVectors>;

// A multiple of every tile's height. kDepthBlock of a and of b, and the sums of a block, fit L2.
inline constexpr int64_t kBlockRows = 384;
template <class C>
inline constexpr int64_t kBlockCols = 128 / kTileCols<C> * kTileCols<C>;
inline constexpr int64_t kDepthBlock = 256;              // steps of a chain: longer ones sum less well
inline constexpr int64_t kMaxDepth = 4096;               // steps that are packed at a time
inline constexpr int64_t kPackedMax = int64_t{4} << 20;  // of an operand: rows or columns x steps
inline constexpr int64_t kPackRun = 256;                 // elements of a row that are read together
inline constexpr int64_t kDotMaxRows = 36;               // above, packing b pays
inline constexpr int64_t kDotMinDepth = 256;             // below, sums over lanes cost more than packing
static_assert(kBlockRows % kTileRows == 0);

// tile = or += a b, one chain; both panels packed, `steps` long. Of a tile with few rows, only a third or two
// are computed. `next`, or null: what comes to L2 meanwhile, a line a step.
template <class P, class C = SumOf<P>>
[[gnu::noinline]] void multiply_tile(int64_t steps, const P* a, const P* b, bool add, int rows, const P* next,
                                     GemmTile<C>& tile) {
  const auto multiply = [&]<int kRows>(std::integral_constant<int, kRows>) {
    Tile<C, kRows, kTileVectors> chain;
    chain.clear();
    if (next) {
      chain.template accumulate<true>(steps, a, 1, kTileRows, b, kTileCols<C>, next);
    } else {
      chain.accumulate(steps, a, 1, kTileRows, b, kTileCols<C>);
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kTileVectors; ++v)
        tile.at[r][v] = add ? tile.at[r][v] + chain.at[r][v] : chain.at[r][v];
    }
  };
  constexpr int kThird = (kTileRows + 2) / 3;
  if (rows <= kThird) return multiply(std::integral_constant<int, kThird>{});
  if (rows <= 2 * kThird) return multiply(std::integral_constant<int, 2 * kThird>{});
  multiply(std::integral_constant<int, kTileRows>{});
}

// A block of C, a slice of the depth: panels of a and b with `steps` of k. `tiles` keeps the sums from one
// slice to the next: `first` starts them, `last` finishes them.
template <class P, class Epilogue, class C = SumOf<P>>
[[gnu::noinline]] void multiply_block(int64_t row0, int64_t rows, int64_t col0, int64_t cols, int64_t steps,
                                      const P* a, const P* b, GemmTile<C>* tiles, bool first, bool last,
                                      const Epilogue& epilogue) {
  constexpr int64_t kLine = 64 / sizeof(P), kFetches = ceil_div(kTileCols<C>, kLine);
  for (int64_t j = 0; j < cols; j += kTileCols<C>) {
    for (int64_t i = 0; i < rows; i += kTileRows, ++tiles) {
      const int tile_rows = static_cast<int>(std::min<int64_t>(kTileRows, rows - i));
      const int tile_cols = static_cast<int>(std::min<int64_t>(kTileCols<C>, cols - j));
      if (last) epilogue.prefetch(row0 + i, col0 + j, tile_rows, tile_cols);
      // The first column of tiles brings the next panels of a, the first tiles of a column the next panel of b.
      const P* next = nullptr;
      if (j == 0) {
        if (i + kTileRows < rows) next = a + (i + kTileRows) * steps;
      } else if (i < kFetches * kTileRows && j + kTileCols<C> < cols) {
        next = b + (j + kTileCols<C> + i / kTileRows * kLine) * steps;
      }
      multiply_tile(steps, a + i * steps, b + j * steps, !first, tile_rows, next, *tiles);
      if (last) epilogue(*tiles, row0 + i, col0 + j, tile_rows, tile_cols);
    }
  }
}

// The depth in slices, each packed on its own: what a block reads of one is contiguous.
template <class P>
struct Slices {
  int64_t depth, count;

  explicit Slices(int64_t depth)
      : depth(depth), count(std::max<int64_t>(ceil_div(steps_of<P>(depth), kDepthBlock), 1)) {}

  int64_t begin(int64_t slice) const { return slice * kDepthBlock * kPerStep<P>; }
  int64_t size(int64_t slice) const { return std::min(kDepthBlock * kPerStep<P>, depth - begin(slice)); }
};

// Equal parts, each a multiple of `unit` and at most about `limit`.
inline int64_t part_size(int64_t size, int64_t limit, int64_t unit) {
  const int64_t parts = std::max<int64_t>(ceil_div(size, std::max(limit / unit * unit, unit)), 1);
  return ceil_div(ceil_div(size, parts), unit) * unit;
}

// At most kBlockRows rows: a copy of b in memory would cost more than it saves. Each block of columns packs
// its own slices of b, which never leave the core's L2.
template <class T, class Epilogue>
void gemm_few_rows(int64_t rows, int64_t cols, int64_t depth, const Operand<T>& a, const Operand<T>& b,
                   const Epilogue& epilogue, int threads) {
  using C = Compute<T>;
  using P = Packed<T>;
  constexpr int64_t kPanels = kBlockCols<C> / kTileCols<C>;
  const int64_t row_panels = ceil_div(rows, kTileRows);
  const Slices<P> slices(depth);
  const int64_t a_slice = row_panels * kTileRows * kDepthBlock;
  P* packed_a = workspace<P>(Slot::lhs, slices.count * a_slice);
  parallel_for(slices.count, threads, [&](int64_t slice) {
    pack_panels<kTileRows>(a, 0, rows, 0, row_panels, slices.begin(slice), slices.size(slice),
                           packed_a + slice * a_slice);
  });
  parallel_for(ceil_div(cols, kBlockCols<C>), threads, [&](int64_t task) {
    const int64_t col0 = task * kBlockCols<C>, part_cols = std::min(kBlockCols<C>, cols - col0);
    P* packed_b = workspace<P>(Slot::rhs, kBlockCols<C> * kDepthBlock);
    auto* tiles = workspace<GemmTile<C>>(Slot::tiles, row_panels * kPanels);
    for (int64_t slice = 0; slice < slices.count; ++slice) {
      pack_panels<kTileCols<C>>(b, col0, part_cols, 0, kPanels, slices.begin(slice), slices.size(slice),
                                packed_b);
      multiply_block(0, rows, col0, part_cols, steps_of<P>(slices.size(slice)), packed_a + slice * a_slice,
                     packed_b, tiles, slice == 0, slice == slices.count - 1, epilogue);
    }
  });
}

// At most kDotMaxRows rows, and b contiguous along k, as when a token at a time meets a linear layer: nothing
// is packed but a, and b is read once.
template <class T, class Epilogue>
void gemm_dot(int64_t rows, int64_t cols, int64_t depth, const Operand<T>& a, const Operand<T>& b,
              const Epilogue& epilogue, int threads) {
  using C = Compute<T>;
  using P = Packed<T>;
  constexpr int kCols = std::max(kLanes<C>, kDotCols<C>);  // of one row as many sums as a vector has
  static_assert(kTileCols<C> % kCols == 0);
  const int64_t a_stride = ceil_div(depth, kPerStep<P> * kLanes<P>) * kLanes<P>;
  P* packed_a = workspace<P>(Slot::lhs, rows * a_stride);
  pack_rows(a, rows, depth, packed_a, a_stride);
  parallel_for(ceil_div(cols, kBlockCols<C>), threads, [&](int64_t task) {
    const int64_t end = std::min((task + 1) * kBlockCols<C>, cols);
    auto* tiles = workspace<GemmTile<C>>(Slot::tiles, ceil_div(rows, kTileRows));
    C* dots = reinterpret_cast<C*>(tiles);  // [rows][kTileCols], as tiles lie
    for (int64_t col0 = task * kBlockCols<C>; col0 < end; col0 += kTileCols<C>) {
      const int tile_cols = static_cast<int>(std::min<int64_t>(kTileCols<C>, end - col0));
      const auto for_tiles = [&](const auto& body) {
        for (int64_t row = 0; row < rows; row += kTileRows)
          body(row, static_cast<int>(std::min<int64_t>(kTileRows, rows - row)));
      };
      for_tiles([&](int64_t row, int count) { epilogue.prefetch(row, col0, count, tile_cols); });
      for (int j = 0; j < tile_cols; j += kCols) {
        const T* b_cols[kCols];
        for (int c = 0; c < kCols; ++c) b_cols[c] = b.data + std::min(col0 + j + c, end - 1) * b.stride;
        dot_products_rows(rows, depth, packed_a, a_stride, b_cols, kCols * b.stride, dots + j, kTileCols<C>);
      }
      for_tiles(
          [&](int64_t row, int count) { epilogue(tiles[row / kTileRows], row, col0, count, tile_cols); });
    }
  });
}

template <class T, class Epilogue>
void gemm(int64_t rows, int64_t cols, int64_t depth, const Operand<T>& a, const Operand<T>& b,
          const Epilogue& epilogue, int threads) {
  using C = Compute<T>;
  using P = Packed<T>;
  if (rows <= 0 || cols <= 0) return;
  if (rows <= kDotMaxRows && depth >= kDotMinDepth && b.depth_stride == 1 && !b.function)
    return gemm_dot(rows, cols, depth, a, b, epilogue, threads);
  const int64_t steps = steps_of<P>(depth);
  if (rows <= kBlockRows && steps <= kMaxDepth)
    return gemm_few_rows(rows, cols, depth, a, b, epilogue, threads);
  constexpr int64_t kTilesPerBlock = kBlockRows / kTileRows * (kBlockCols<C> / kTileCols<C>);
  constexpr int64_t kRowRun = kPackRun / kTileRows, kColRun = kPackRun / kTileCols<C>;  // panels
  const int64_t steps_part = steps <= kMaxDepth ? std::max<int64_t>(steps, 1) : kMaxDepth / 2;
  const int64_t row_part = part_size(rows, kPackedMax / steps_part, kBlockRows);
  const int64_t col_part = part_size(cols, kPackedMax / steps_part, kBlockCols<C>);
  const bool one_pass = steps <= steps_part;

  for (int64_t col0 = 0; col0 < cols; col0 += col_part) {
    const int64_t part_cols = std::min(col_part, cols - col0);
    for (int64_t row0 = 0; row0 < rows; row0 += row_part) {
      const int64_t part_rows = std::min(row_part, rows - row0);
      const int64_t row_blocks = ceil_div(part_rows, kBlockRows),
                    col_blocks = ceil_div(part_cols, kBlockCols<C>);
      GemmTile<C>* sums =
          one_pass ? nullptr : workspace<GemmTile<C>>(Slot::sums, row_blocks * col_blocks * kTilesPerBlock);
      int64_t step0 = 0;
      do {
        const int64_t part_steps = std::min(steps_part, steps - step0);
        const int64_t k0 = step0 * kPerStep<P>, part_depth = std::min(part_steps * kPerStep<P>, depth - k0);
        const Slices<P> slices(part_depth);
        const int64_t row_panels = ceil_div(part_rows, kTileRows),
                      col_panels = ceil_div(part_cols, kTileCols<C>);
        const int64_t a_slice = row_panels * kTileRows * kDepthBlock,
                      b_slice = col_panels * kTileCols<C> * kDepthBlock;
        P* packed_a = workspace<P>(Slot::lhs, slices.count * a_slice);
        P* packed_b = workspace<P>(Slot::rhs, slices.count * b_slice);
        const int64_t row_tasks = ceil_div(row_panels, kRowRun);
        // b is packed with the first rows only, when the whole depth is.
        const int64_t col_tasks = one_pass && row0 > 0 ? 0 : ceil_div(col_panels, kColRun);
        parallel_for((row_tasks + col_tasks) * slices.count, threads, [&](int64_t task) {
          const int64_t slice = task % slices.count, run = task / slices.count;
          const int64_t k = k0 + slices.begin(slice), count = slices.size(slice);
          if (run < row_tasks) {
            pack_panels<kTileRows, true>(a, row0, part_rows, run * kRowRun, kRowRun, k, count,
                                         packed_a + slice * a_slice);
          } else {
            pack_panels<kTileCols<C>, true>(b, col0, part_cols, (run - row_tasks) * kColRun, kColRun, k,
                                            count, packed_b + slice * b_slice);
          }
        });
        parallel_for(row_blocks * col_blocks, threads, [&](int64_t task) {
          const int64_t i = task / col_blocks * kBlockRows, j = task % col_blocks * kBlockCols<C>;
          GemmTile<C>* tiles =
              one_pass ? workspace<GemmTile<C>>(Slot::tiles, kTilesPerBlock) : sums + task * kTilesPerBlock;
          for (int64_t slice = 0; slice < slices.count; ++slice) {
            const int64_t count = steps_of<P>(slices.size(slice));
            multiply_block(row0 + i, std::min(kBlockRows, part_rows - i), col0 + j,
                           std::min(kBlockCols<C>, part_cols - j), count,
                           packed_a + slice * a_slice + i * count, packed_b + slice * b_slice + j * count,
                           tiles, step0 == 0 && slice == 0,
                           step0 + part_steps >= steps && slice == slices.count - 1, epilogue);
          }
        });
        step0 += part_steps;
      } while (step0 < steps);
    }
  }
}

// ------------------------------------------------------------------------------------------------ epilogues

// Calls body(r, c, vector&, count) for the vectors of the tile that exist: row r, columns [c, c + count).
template <class C, class Body>
GLM_INLINE void for_tile(GemmTile<C>& tile, int rows, int cols, const Body& body) {
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v * kLanes<C> < cols; ++v)
      body(r, v * kLanes<C>, tile.at[r][v], std::min(kLanes<C>, cols - v * kLanes<C>));
  }
}

// Asks for the tile's lines of memory while its product is computed: a miss costs more than the epilogue.
template <class T>
GLM_INLINE void prefetch_tile(const T* out, int64_t row_stride, int64_t row, int64_t col, int rows,
                              int cols) {
  constexpr int kLine = 64 / sizeof(T);
  for (int r = 0; r < rows; ++r) {
    const T* p = out + (row + r) * row_stride + col;
    for (int c = 0; c < cols; c += kLine) __builtin_prefetch(p + c, 1);
  }
}

// out = C, out = C + bias, or out += C.
template <class T>
struct Store {
  T* out;
  int64_t row_stride;
  const T* bias = nullptr;  // [cols]
  bool add = false;

  GLM_INLINE void prefetch(int64_t row, int64_t col, int rows, int cols) const {
    prefetch_tile(out, row_stride, row, col, rows, cols);
  }

  GLM_INLINE void operator()(GemmTile<Compute<T>>& tile, int64_t row, int64_t col, int rows, int cols) const {
    for_tile<Compute<T>>(tile, rows, cols, [&](int r, int c, auto& v, int count) {
      T* p = out + (row + r) * row_stride + col + c;
      if (bias) v += load_as_some(bias + col + c, count);
      if (add) v += load_as_some(p, count);
      store_as_some(p, v, count);
    });
  }
};

}  // namespace glm::cpu::GLM_ISA
