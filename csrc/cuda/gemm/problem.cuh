// A matrix product C [M, N] = A B^T as its kernels see it: how operands lie, and what a block does of it.
#pragma once

#include "cuda/ptx.cuh"

namespace glm::cuda {

// How an operand lies in memory: its rows' elements together, or its depths'; `any`: with any strides, or not
// aligned to 16 bytes, and then element by element into a panel by depth.
enum class Layout { by_depth, by_row, any };

struct GemmOperand {
  const void* data;
  int64_t row_stride, depth_stride;
  bool padded = false;  // chunks that begin inside of a line may be read whole, and are zero past the depth
};

struct GemmProblem {
  int64_t rows, cols, depth;  // M, N, K
  GemmOperand a, b;
  // Rows that count, where only the device knows how many: of M, or of K where limits_depth. Null: all.
  const int32_t* count = nullptr;
  int64_t first = 0;          // the number of row 0 among those counted
  bool limits_depth = false;  // and then all but the first add to C
  int slices = 1;             // of the depth, each a C of its own: an epilogue is told which

  __device__ __forceinline__ int64_t limited(int64_t size, bool is_depth) const {
    if (count == nullptr || limits_depth != is_depth) return size;
    const int64_t left = load_global(count) - first;
    return left < 0 ? 0 : left < size ? left : size;
  }
};

// What a block does: its tile of C, and its slice of the depth in steps. Eight tiles down, then one to the right:
// the blocks that run at a time share rows of A and B in L2.
struct GemmBlock {
  int64_t row_tile, row, col;  // the tile's number, and where it begins
  int64_t rows, depth;         // that there are
  int slice;
  int64_t first_step;
  int steps;
  bool idle;

  __device__ __forceinline__ GemmBlock(const GemmProblem& p, int tile_rows, int tile_cols, int step_depth)
      : rows(p.limited(p.rows, false)), depth(p.limited(p.depth, true)), slice(static_cast<int>(blockIdx.y)) {
    const int64_t row_tiles = (p.rows + tile_rows - 1) / tile_rows;
    const int64_t col_tiles = (p.cols + tile_cols - 1) / tile_cols;
    const int64_t band = blockIdx.x / (8 * col_tiles), within = blockIdx.x % (8 * col_tiles);
    const int64_t high = row_tiles - band * 8 < 8 ? row_tiles - band * 8 : 8;
    row_tile = band * 8 + within % high;
    row = row_tile * tile_rows;
    col = within / high * tile_cols;
    const int64_t all_steps = (depth + step_depth - 1) / step_depth;
    first_step = slice * all_steps / p.slices;
    steps = static_cast<int>((slice + 1) * all_steps / p.slices - first_step);
    // Past the rows that there are, or with nothing to add to what was there.
    idle = row >= rows || (p.limits_depth && p.first > 0 && depth == 0);
  }
};

}  // namespace glm::cuda
