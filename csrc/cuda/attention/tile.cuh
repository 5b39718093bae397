// Tiles of attention: which rows a block takes, which keys they see, and how a tile lies in shared memory.
#pragma once

#include "core/span_mask.h"
#include "cuda/dispatch.cuh"
#include "cuda/ptx.cuh"
#include "ops/span_attention.h"

namespace glm::cuda {

// ---- work
// ----------------------------------------------------------------------------------------------------

struct RowTile {
  int b;            // sequence
  int first, rows;  // in the sequence; 0 rows: nothing to do
  SpanSequence sequence;
};

// Dense: (row tiles, heads, sequences). Packed: as many row tiles as any lengths could need; the place behind
// the last sequence counts as one more that sees nothing, so that its rows are written too.
inline dim3 row_tile_grid(const SpanAttention& p, int tile_rows) {
  const unsigned tiles = blocks_for(p.rows, tile_rows), heads = static_cast<unsigned>(p.heads);
  if (p.cu_seqlens != nullptr) return dim3{tiles + static_cast<unsigned>(p.batch), heads, 1};
  return dim3{tiles, heads, static_cast<unsigned>(p.batch)};
}

// The block's rows. Late rows see the most keys: they start first.
__device__ __forceinline__ RowTile find_row_tile(const SpanAttention& p, int tile_rows) {
  int b = static_cast<int>(blockIdx.z), tile = static_cast<int>(blockIdx.x);
  const int batch = static_cast<int>(p.batch);
  SpanSequence sequence;
  int tiles;
  if (p.cu_seqlens == nullptr) {
    sequence = p.sequence(b);
    tiles = static_cast<int>((sequence.rows + tile_rows - 1) / tile_rows);
  } else {
    for (b = 0;; ++b) {
      if (b > batch) return {};
      const int64_t begin = p.cu_seqlens[b], end = b < batch ? p.cu_seqlens[b + 1] : p.rows;
      tiles = static_cast<int>((end - begin + tile_rows - 1) / tile_rows);
      if (tile < tiles) break;
      tile -= tiles;
    }
    const int64_t begin = p.cu_seqlens[b];
    sequence = b < batch ? p.sequence(b) : SpanSequence{begin, begin, p.rows - begin, 0, {0, 0, 0, 0}};
  }
  const int first = (tiles - 1 - tile) * tile_rows;
  const int rest = static_cast<int>(sequence.rows) - first;
  return {b, first, rest < tile_rows ? rest : tile_rows, sequence};
}

// Key tiles [begin, end) of `size` keys hold all that rows [first, last) see; those in [full_begin, full_end)
// are seen whole by every row.
struct KeyTiles {
  int begin, end, full_begin, full_end;

  __device__ __forceinline__ KeyTiles(const SpanMask& mask, int first, int last, int size)
      : begin(static_cast<int>(mask.begin / size)),
        end(static_cast<int>((mask.seen_end(last) + size - 1) / size)),
        full_begin(static_cast<int>((mask.begin + size - 1) / size)),
        full_end(static_cast<int>(mask.full_end(first) / size)) {}

  __device__ __forceinline__ bool full(int n) const { return full_begin <= n && n < full_end; }
};

inline void check_attention(const SpanAttention& p) {
  GLM_CHECK(p.dtype == DType::bf16 || p.dtype == DType::f16,
            "query: expected bfloat16 or float16 on a GPU, got dtype code ", static_cast<int>(p.dtype));
  GLM_CHECK(p.head_dim % 8 == 0 && p.head_dim <= 256,
            "query: expected a head dim that is a multiple of 8 and at most 256 on a GPU, got ", p.head_dim);
  for (const AttentionRows* x : {&p.query, &p.key, &p.value})
    GLM_CHECK(reinterpret_cast<uintptr_t>(x->data) % 16 == 0 && x->batch % 8 == 0 && x->head % 8 == 0 &&
                  x->row % 8 == 0,
              "query, key, value: expected rows that begin at multiples of 16 bytes on a GPU, got strides ",
              x->batch, ", ", x->head, ", ", x->row, "; call contiguous() first");
  GLM_CHECK(
      p.rows < (int64_t{1} << 30) && p.keys < (int64_t{1} << 30) && p.heads <= 65535 && p.batch <= 65535,
      "query: expected fewer than 2^30 rows, at most 65535 heads and 65535 sequences, got ", p.rows, ", ",
      p.heads, ", ", p.batch);
}

// ---- shared memory
// -------------------------------------------------------------------------------------------

// A row is cut into chunks of 16 bytes, and chunk c of row r lies at place c ^ (r % 8): the 8 rows of an
// ldmatrix, a chunk each, fall into 8 different groups of banks.
template <class T, int kHeadDim>
__device__ __forceinline__ T* chunk_at(T (*tile)[kHeadDim], int row, int chunk) {
  // Written so that what is constant of the chunk stays an immediate offset.
  return tile[row] + (chunk & ~7) * 8 + ((chunk & 7) ^ (row & 7)) * 8;
}

// Starts to copy rows [first, first + kRows) of `source` into a tile; rows outside of [begin, end) and
// columns at and after head_dim become zeros.
template <int kThreads, class T, int kRows, int kHeadDim>
__device__ __forceinline__ void copy_rows(T (&tile)[kRows][kHeadDim], const T* source, int64_t stride,
                                          int first, int begin, int end, int head_dim) {
  constexpr int kChunks = kHeadDim / 8, kStep = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0 && kRows % kStep == 0);
  const int chunk = static_cast<int>(threadIdx.x) % kChunks, r0 = static_cast<int>(threadIdx.x) / kChunks;
  const bool inside = chunk * 8 < head_dim;
  const T* place = source + (first + r0) * stride + chunk * 8;
#pragma unroll 4
  for (int r = r0; r < kRows; r += kStep, place += kStep * stride)
    copy_async(chunk_at(tile, r, chunk), place, inside && begin <= first + r && first + r < end);
}

}  // namespace glm::cuda
