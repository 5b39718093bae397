// The tiles of a packed batch, those with the most work first. No sort: how many tiles of a sequence cost
// more than c is a formula, so that each tile counts its own place, B steps a thread.
#include "cuda/attention/tile.cuh"

namespace glm::cuda {
namespace {

constexpr int kThreads = 128;

// The tiles of one sequence and what they cost, in tiles of the other side. Rows of Part A and early rows of
// Part B see all of A, later ones their past; keys of A are seen by all rows, those of B by the rest.
template <TilesOf kWhat>
struct SequenceTiles {
  int64_t tiles, prefix_tiles;

  __device__ __forceinline__ SequenceTiles(const SpanAttention& p, int tile_rows, int b)
      : tiles(((b < p.batch ? p.cu_seqlens[b + 1] : p.rows) - p.cu_seqlens[b] + tile_rows - 1) / tile_rows),
        prefix_tiles(b < p.batch ? (p.prefix_len[b] + tile_rows - 1) / tile_rows : 0) {}

  __device__ __forceinline__ int64_t cost(int64_t tile) const {
    if (kWhat == TilesOf::rows) return SpanMask::max(prefix_tiles, tile + 1);
    return tile < prefix_tiles ? tiles : tiles - tile;
  }
  // Tiles that cost c or more: for rows the last ones, for keys the first ones.
  __device__ __forceinline__ int64_t costing(int64_t c) const {
    if (kWhat == TilesOf::rows) return c <= prefix_tiles ? tiles : SpanMask::max(0, tiles - c + 1);
    return c > tiles ? 0 : SpanMask::max(prefix_tiles, tiles - c + 1);
  }
};

template <TilesOf kWhat>
__global__ void __launch_bounds__(kThreads)
    tile_list_kernel(SpanAttention p, int tile_rows, TileList list, int64_t size) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + static_cast<int64_t>(threadIdx.x);
  if (index >= size) return;
  const int batch = static_cast<int>(p.batch);
  int64_t tile = index;
  int b = 0;
  for (; b <= batch; ++b) {
    const int64_t tiles = SequenceTiles<kWhat>(p, tile_rows, b).tiles;
    if (tile < tiles) break;
    tile -= tiles;
  }
  if (b > batch) return store_global(list.data + index, Pack<int, 2>{{-1, 0}});  // behind all tiles there are
  if (kWhat == TilesOf::rows)
    tile = SequenceTiles<kWhat>(p, tile_rows, b).tiles - 1 - tile;  // costs fall with the index
  const int64_t cost = SequenceTiles<kWhat>(p, tile_rows, b).cost(tile);
  int64_t place = 0;  // tiles that cost more, and those before it that cost the same
  for (int other = 0; other <= batch; ++other) {
    const SequenceTiles<kWhat> sequence(p, tile_rows, other);
    place += sequence.costing(other < b ? cost : cost + 1);
  }
  const SequenceTiles<kWhat> own(p, tile_rows, b);
  place += (kWhat == TilesOf::rows ? own.tiles - 1 - tile : tile) - own.costing(cost + 1);
  if (0 <= place && place < size)  // nobody has looked at cu_seqlens on a GPU
    store_global(list.data + place, Pack<int, 2>{{b, static_cast<int>(tile) * tile_rows}});
}

}  // namespace

void launch_tile_list(const SpanAttention& p, TilesOf what, int tile_rows, TileList list,
                      cudaStream_t stream) {
  const int64_t size = TileList::size(p, tile_rows);
  if (size == 0) return;
  launch(what == TilesOf::rows ? tile_list_kernel<TilesOf::rows> : tile_list_kernel<TilesOf::keys>,
         dim3{blocks_for(size, kThreads), 1, 1}, dim3{kThreads, 1, 1}, 0, stream, p, tile_rows, list, size);
}

}  // namespace glm::cuda
