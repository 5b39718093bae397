// How a tile of a matrix lies in shared memory, and how it gets there.
#pragma once

#include "cuda/ptx.cuh"

namespace glm::cuda {

template <class T>
inline constexpr int kChunk = 16 / static_cast<int>(sizeof(T));  // elements of 16 bytes

// A tile in shared memory: kDim columns in blocks of 128 bytes, a row of a block after the other. The row is cut
// into chunks of 16 bytes, and chunk c of row r lies at place c ^ (r % 8): the 8 rows of an ldmatrix, a chunk
// each, fall into 8 different groups of banks. It is also what wgmma calls the swizzle of 128 bytes
// (cuda/wgmma.cuh), where the tile begins at a multiple of 1024.
template <class T, int kRowCount, int kDim>
struct Panel {
  static constexpr int kRows = kRowCount, kColumns = kDim;
  static constexpr int kAcross = 128 / static_cast<int>(sizeof(T));  // columns of a block
  static_assert(kDim % kAcross == 0 && kRows % 8 == 0);

  T block[kDim / kAcross][kRows][kAcross];
};

template <class T, int kRows, int kDim>
__device__ __forceinline__ T* chunk_at(Panel<T, kRows, kDim>& tile, int row, int chunk) {
  return tile.block[chunk >> 3][row] + ((chunk & 7) ^ (row & 7)) * kChunk<T>;
}

// Columns [first, first + kOut) of a tile, `first` a multiple of a block's.
template <int kOut, class T, int kRows, int kDim>
__device__ __forceinline__ Panel<T, kRows, kOut>& columns_from(Panel<T, kRows, kDim>& tile, int first) {
  return reinterpret_cast<Panel<T, kRows, kOut>&>(tile.block[first / Panel<T, kRows, kDim>::kAcross]);
}

// Starts to copy rows [first, first + kRows) of `source` into a tile; rows outside of [begin, end) and
// columns at and after head_dim become zeros.
template <int kThreads, class T, int kRows, int kHeadDim>
__device__ __forceinline__ void copy_rows(Panel<T, kRows, kHeadDim>& tile, const T* source, int64_t stride,
                                          int first, int begin, int end, int head_dim,
                                          int thread = static_cast<int>(threadIdx.x)) {
  constexpr int kChunks = kHeadDim / kChunk<T>, kStep = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0 && kRows % kStep == 0);
  const int chunk = thread % kChunks, r0 = thread / kChunks;
  const bool inside = chunk * kChunk<T> < head_dim;
  const T* place = source + (first + r0) * stride + chunk * kChunk<T>;
#pragma unroll 4
  for (int r = r0; r < kRows; r += kStep, place += kStep * stride)
    copy_async(chunk_at(tile, r, chunk), place, inside && begin <= first + r && first + r < end);
}

}  // namespace glm::cuda
