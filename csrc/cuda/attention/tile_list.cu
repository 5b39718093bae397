// The tiles of a packed batch, those with the most work first. No sort: how many tiles of a sequence cost
// more than c is a formula, so that each tile finds its own place, a warp a tile and a lane a sequence.
#include "cuda/attention/tile.cuh"

namespace glm::cuda {
namespace {

constexpr int kWarps = 4;

// The tiles of one sequence and what they cost, in tiles of the other side. Rows of Part A and early rows of
// Part B see all of A, later ones their past; keys of A are seen by all rows, those of B by the rest.
template <TilesOf kWhat>
struct SequenceTiles {
  int64_t tiles, prefix_tiles;
  int64_t most;  // that a tile costs: nothing behind the last sequence

  __device__ __forceinline__ SequenceTiles(const SpanAttention& p, int tile_rows, int b) {
    const int64_t begin = p.bound(b), end = b < p.batch ? p.bound(b + 1) : p.rows;
    const int64_t length = SpanMask::max(0, end - begin);
    tiles = (static_cast<int>(length) + tile_rows - 1) / tile_rows;
    const int64_t prefix = b < p.batch ? SpanAttention::clamp(p.prefix_len[b], length) : 0;
    prefix_tiles = (static_cast<int>(prefix) + tile_rows - 1) / tile_rows;
    most = b < p.batch ? tiles : 0;
  }
  // Of the tile that comes at `index`, the dearest first: for rows the last one, for keys the first.
  __device__ __forceinline__ int64_t cost(int64_t index) const {
    const int64_t seen = index < prefix_tiles ? tiles : tiles - index;  // by the rows of how many tiles
    return SpanMask::min(most, kWhat == TilesOf::keys ? seen : SpanMask::max(prefix_tiles, tiles - index));
  }
  // How many cost c or more.
  __device__ __forceinline__ int64_t costing(int64_t c) const {
    if (c <= 0) return tiles;
    if (c > most) return 0;
    if (kWhat == TilesOf::keys) return SpanMask::max(prefix_tiles, tiles - c + 1);
    return c <= prefix_tiles ? tiles : tiles - c + 1;
  }
};

template <TilesOf kWhat>
__global__ void __launch_bounds__(kWarps* kWarp)
    tile_list_kernel(SpanAttention p, int tile_rows, TileList list, int size) {
  using Tiles = SequenceTiles<kWhat>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, batch = static_cast<int>(p.batch);
  const int own = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (own >= size) return;

  int b = -1;  // the sequence of tile `own`, and which of its tiles
  int64_t index = 0, total = 0;
  for (int first = 0; first <= batch; first += kWarp) {
    const int64_t tiles = first + lane <= batch ? Tiles(p, tile_rows, first + lane).tiles : 0;
    int64_t through = tiles;  // of the sequences up to this lane's
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int64_t before = __shfl_up_sync(kAllLanes, through, distance);
      if (lane >= distance) through += before;
    }
    through += total;
    const uint32_t reached = __ballot_sync(kAllLanes, own < through);  // from some lane on
    if (b < 0 && reached != 0) {
      const int hit = kWarp - count_bits(reached);
      b = first + hit;
      index = own - __shfl_sync(kAllLanes, through - tiles, hit);
    }
    total = __shfl_sync(kAllLanes, through, kWarp - 1);
  }
  if (b < 0) {  // behind all tiles that there are
    if (lane == 0) store_global(list.data + own, Pack<int, 2>{{-1, 0}});
    return;
  }

  const Tiles sequence(p, tile_rows, b);
  int64_t place = own;
  if (total <= size) {  // else bounds fall and claim rows twice: as many tiles as there is room for
    const int64_t cost = sequence.cost(index);
    place = 0;  // tiles that cost more, and those before it that cost the same
    for (int other = lane; other <= batch; other += kWarp)
      place += other == b ? index : Tiles(p, tile_rows, other).costing(other < b ? cost : cost + 1);
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2)
      place += __shfl_xor_sync(kAllLanes, place, distance);
  }
  const int tile = static_cast<int>(kWhat == TilesOf::rows ? sequence.tiles - 1 - index : index);
  if (lane == 0) store_global(list.data + place, Pack<int, 2>{{b, tile * tile_rows}});
}

}  // namespace

void launch_tile_list(const SpanAttention& p, TilesOf what, int tile_rows, TileList list,
                      cudaStream_t stream) {
  const int64_t size = TileList::size(p, tile_rows);
  if (size == 0) return;
  launch(what == TilesOf::rows ? tile_list_kernel<TilesOf::rows> : tile_list_kernel<TilesOf::keys>,
         dim3{blocks_for(size, kWarps), 1, 1}, dim3{kWarps * kWarp, 1, 1}, 0, stream, p, tile_rows, list,
         size);
}

}  // namespace glm::cuda
