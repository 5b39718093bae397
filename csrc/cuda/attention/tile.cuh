// Tiles of attention: which rows or keys a block takes, and how results leave it.
#pragma once

#include "core/span_mask.h"
#include "cuda/device.h"
#include "cuda/dispatch.cuh"
#include "cuda/panel.cuh"
#include "ops/span_attention.h"

namespace glm::cuda {

// ---- work
// ----------------------------------------------------------------------------------------------------

struct Tile {
  int b;             // sequence
  int first, count;  // rows (or keys) in the sequence; count 0: nothing to do
  SpanSequence sequence;
};

// Which of the two lengths of a sequence is cut into tiles, and the tile that starts first: the one with the
// most work. Late rows see the most keys, early keys are seen by the most rows.
enum class TilesOf : int { rows, keys };

// Tiles of packed sequences, in the order in which blocks take them: written by a kernel of its own
// (attention/tile_list.cu).
struct TileList {
  Pack<int, 2>* data;  // sequence, first row or key; sequence -1: no tile

  // As many as any lengths could need. The place behind the last sequence counts as one more, which sees
  // nothing: its rows are written too.
  static int64_t size(const SpanAttention& p, int tile_rows) {
    return p.cu_seqlens == nullptr ? 0 : p.rows / tile_rows + p.batch + 1;
  }
};

inline constexpr int kTileRows = 64;

void launch_tile_list(const SpanAttention&, TilesOf, int tile_rows, TileList, cudaStream_t);

// Dense: (tiles, heads, sequences). Packed: (tiles, heads, 1).
inline dim3 tile_grid(const SpanAttention& p, TilesOf what, int tile_rows) {
  const unsigned heads = static_cast<unsigned>(what == TilesOf::rows ? p.heads : p.kv_heads);
  if (p.cu_seqlens != nullptr) return dim3{static_cast<unsigned>(TileList::size(p, tile_rows)), heads, 1};
  return dim3{blocks_for(what == TilesOf::rows ? p.rows : p.keys, tile_rows), heads,
              static_cast<unsigned>(p.batch)};
}

template <TilesOf kWhat, int kSize = kTileRows>
__device__ __forceinline__ Tile find_tile(const SpanAttention& p, TileList list, int index,
                                          int b = static_cast<int>(blockIdx.z)) {
  Tile tile = {b, index * kSize, 0, {}};
  if (p.cu_seqlens == nullptr) {
    tile.sequence = p.sequence(tile.b);
    if (kWhat == TilesOf::rows)
      tile.first = (static_cast<int>(p.rows + kSize - 1) / kSize - 1 - index) * kSize;
  } else {
    const Pack<int, 2> place = load_global(list.data + index);
    tile.b = place.value[0];
    tile.first = place.value[1];
    if (tile.b < 0) return tile;
    const int64_t begin = p.bound(tile.b), rest = p.rows - begin;
    tile.sequence =
        tile.b < p.batch ? p.sequence(tile.b) : SpanSequence{begin, begin, rest, rest, {0, 0, 0, 0}};
  }
  const int left =
      static_cast<int>(kWhat == TilesOf::rows ? tile.sequence.rows : tile.sequence.keys) - tile.first;
  tile.count = left < kSize ? left : kSize;
  return tile;
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

  // Of the tiles [begin, end), one of `splits` equal shares, from the right.
  __device__ __forceinline__ void keep_share(int split, int splits) {
    const int share = (end - begin + splits - 1) / splits;
    end -= split * share;
    begin = begin > end - share ? begin : end - share;
  }
};

// The first element of `head` in a sequence whose place in the tensor is `first`.
template <class T>
__device__ __forceinline__ T* rows_of(const AttentionRows& x, const SpanAttention& p, const Tile& tile,
                                      int64_t head, int64_t first) {
  return static_cast<T*>(x.data) + x.offset(p.cu_seqlens == nullptr ? tile.b : 0, head, first);
}

inline void check_rows(const char* name, const AttentionRows& x, int64_t element_bytes) {
  const int64_t chunk = 16 / element_bytes;
  GLM_CHECK(reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.batch % chunk == 0 && x.head % chunk == 0 &&
                x.row % chunk == 0,
            name, ": expected rows that begin at multiples of 16 bytes on a GPU, got strides ", x.batch, ", ",
            x.head, ", ", x.row, "; call contiguous() first");
}

inline int64_t element_bytes(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

inline void check_attention(const SpanAttention& p) {
  const int64_t bytes = element_bytes(p.dtype);
  GLM_CHECK(p.dtype != DType::f64,
            "query: expected float32, bfloat16 or float16 on a GPU, got float64; run it on the CPU");
  GLM_CHECK(p.head_dim * bytes % 16 == 0 && p.head_dim <= 256,
            "query: expected a head dim that is a multiple of ", 16 / bytes,
            " and at most 256 on a GPU, got ", p.head_dim);
  check_rows("query", p.query, bytes);
  check_rows("key", p.key, bytes);
  check_rows("value", p.value, bytes);
  GLM_CHECK(
      p.rows < (int64_t{1} << 30) && p.keys < (int64_t{1} << 30) && p.heads <= 65535 && p.batch <= 65535,
      "query: expected fewer than 2^30 rows, at most 65535 heads and 65535 sequences, got ", p.rows, ", ",
      p.heads, ", ", p.batch);
}

// What tiles a kernel takes depends on the shared memory of the card at hand: a block of sm_80 may have 163 KB,
// one of sm_90 227 KB, and their SMs have a kilobyte more for each block; of sm_86, sm_89 and sm_120 99 KB, and
// their SMs 100 KB in all.
enum class Card : int { small, large, hopper };

constexpr int64_t shared_bytes_of(Card card) {
  return (card == Card::small ? 99 : card == Card::large ? 163 : 227) * 1024;
}

inline bool is_small_card() { return shared_bytes_per_block() < shared_bytes_of(Card::large); }

// Whether there is room for a block of so many bytes; but on a small card, for as many as an SM shall have.
constexpr bool finds_room(Card card, int64_t bytes, int blocks) {
  return (bytes + 1024) * (card == Card::small ? 1 : blocks) <= shared_bytes_of(card) + 1024;
}

template <Card kCard>
using On = std::integral_constant<Card, kCard>;

// Calls function(On<card>{}) with a small or a large one.
template <class Function>
void visit_card(Function&& function) {
  if (is_small_card()) return function(On<Card::small>{});
  function(On<Card::large>{});
}

// Calls function(Type<T>{}, dim) with the dtype and the head dim that a kernel is compiled for.
template <class Function>
void visit_attention(const SpanAttention& p, Function&& function) {
  visit_gpu_floating(p.dtype, [&]<class T>(Type<T> type) {
    if (p.head_dim <= 64) return function(type, std::integral_constant<int, 64>{});
    if (p.head_dim <= 128) return function(type, std::integral_constant<int, 128>{});
    function(type, std::integral_constant<int, 256>{});
  });
}

// ---- the way out
// ---------------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ Pack<T, 2> narrow_pair(float low, float high) {
  if constexpr (std::is_same_v<T, float>) {
    return {{low, high}};
  } else {
    return std::bit_cast<Pack<T, 2>>(narrow2<T>(low, high));
  }
}

// Writes 16 rows of sums, times scale[0] (rows g) and scale[1] (rows g + 8) of lane (g, t), to rows
// [first, first + count) of `out`, through rows of a tile that only this warp uses.
template <class T, int kOut, int kRows, int kHeadDim>
__device__ __forceinline__ void write_rows(T* out, int64_t stride, const float (&sums)[kOut / 8][4],
                                           const float (&scale)[2], Panel<T, kRows, kHeadDim>& tile, int row0,
                                           int count, int head_dim, int lane) {
  __syncwarp();  // the last ldmatrix of other lanes
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int d = 0; d < kOut / 8; ++d) {
      const int column = d * 8 + lane % 4 * 2;
      store_shared(reinterpret_cast<Pack<T, 2>*>(
                       chunk_at(tile, row0 + half * 8 + lane / 4, column / kChunk<T>) + column % kChunk<T>),
                   narrow_pair<T>(sums[d][half * 2] * scale[half], sums[d][half * 2 + 1] * scale[half]));
    }
  __syncwarp();
  constexpr int kChunks = kOut / kChunk<T>;
  for (int c = lane; c < 16 * kChunks; c += kWarp) {
    const int r = c / kChunks, chunk = c % kChunks;
    if (r < count && chunk * kChunk<T> < head_dim)
      store_global(reinterpret_cast<Pack<T, kChunk<T>>*>(out + r * stride + chunk * kChunk<T>),
                   load_shared(reinterpret_cast<const Pack<T, kChunk<T>>*>(chunk_at(tile, row0 + r, chunk))));
  }
}

}  // namespace glm::cuda
