// Attention forward on Hopper, for 16-bit elements and head dims up to 128: as attention/forward.cu, but the
// products are those of warpgroups, and run while the softmax of the scores before them is computed. A tile has 128
// rows, a warpgroup 64 of them. Step i of the walk computes the scores of key tile i and adds the values of key tile
// i - 1, which arrive together. Blocks are persistent: what the next tile needs first is on its way while this one is
// finished and written.
#include <algorithm>

#include "cuda/attention/forward.cuh"
#include "cuda/attention/warpgroup_product.cuh"
#include "cuda/device.h"

namespace glm::cuda {
namespace {

template <class Element, int kPaddedDim>
struct HopperForwardTraits {
  using T = Element;
  static constexpr int kHeadDim = kPaddedDim;
  static constexpr int kM = 1;
  static constexpr int kRows = 128;
  static constexpr int kKeys = kHeadDim == 64 ? 64 : 128;
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = kHeadDim == 64 ? 2 : 1;

  struct Shared {
    Panel<T, kRows, kHeadDim> query[2];  // of a tile and the next one; and the output on its way out
    struct {
      Panel<T, kKeys, kHeadDim> key, value;  // of a tile, and of the one before it
    } stage[2];
    int ticket[2];
  };
  static_assert(finds_room(Card::hopper, sizeof(Shared), kBlocksPerSm));
};

// The tiles of all heads and sequences in the order in which blocks take them: a sequence after the other, of all its
// heads those with the most work first (a packed batch is one sequence here). A block has its number for its first
// ticket, and draws the next one from a counter.
struct TileQueue {
  int* drawn;
  int tiles, heads;  // of a sequence
  int size;

  struct Place {
    Tile tile;  // count 0: none, nor any later
    int h;
  };

  __device__ __forceinline__ int draw() const {
    return static_cast<int>(gridDim.x) + fetch_add_global(drawn, 1);
  }
  template <int kRows>
  __device__ __forceinline__ Place place(const SpanAttention& p, TileList list, int ticket) const {
    if (ticket >= size) return {};
    const int of_sequence = ticket % (tiles * heads);
    return {find_tile<TilesOf::rows, kRows>(p, list, of_sequence / heads, ticket / (tiles * heads)),
            of_sequence % heads};
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocksPerSm)
    forward_hopper_kernel(ForwardLaunch launch, TileQueue queue) {
  if constexpr (!kHasWgmma) return wrong_architecture();
  using T = typename Traits::T;
  constexpr int kKeys = Traits::kKeys;
  auto& shared = shared_memory<typename Traits::Shared>();
  const SpanAttention& p = launch.problem;
  const int head_dim = static_cast<int>(p.head_dim);

  const auto place = [&](int ticket) { return queue.template place<Traits::kRows>(p, launch.list, ticket); };
  // Keys that nobody sees become zeros: 0 * NaN would leak from padding.
  const auto copy_keys = [&](Panel<T, kKeys, Traits::kHeadDim>& panel, const T* source, int64_t stride, int n,
                             int begin, int end, int thread) {
    copy_rows<Traits::kThreads>(panel, source, stride, n * kKeys, begin, end, head_dim, thread);
  };
  // What a tile needs first: its rows, and the last keys that they see.
  const auto start = [&](int ticket, int turn, int stage, int thread) {
    const auto [tile, h] = place(ticket);
    if (tile.count == 0) return;
    const SpanMask& mask = tile.sequence.mask;
    const KeyTiles tiles(mask, tile.first, tile.first + tile.count, kKeys);
    if (tiles.begin >= tiles.end) return;
    copy_rows<Traits::kThreads>(shared.query[turn],
                                rows_of<const T>(p.query, p, tile, h, tile.sequence.first_row), p.query.row,
                                tile.first, 0, tile.first + tile.count, head_dim, thread);
    copy_keys(shared.stage[stage].key,
              rows_of<const T>(p.key, p, tile, h / p.group(), tile.sequence.first_key), p.key.row,
              tiles.end - 1, static_cast<int>(mask.begin), static_cast<int>(mask.length), thread);
    copy_async_commit();
  };

  start(static_cast<int>(blockIdx.x), 0, 0, static_cast<int>(threadIdx.x));
  if (threadIdx.x == 0) store_shared(&shared.ticket[0], static_cast<int>(blockIdx.x));
  __syncthreads();
  int first_stage = 0;
  for (int turn = 0;; turn ^= 1) {
    const int thread = thread_of_this_turn(), warp = thread / kWarp, lane = thread % kWarp;
    const int group_row = warp / 4 * 64;
    const auto here = [&] { return place(load_shared(&shared.ticket[turn])); };  // again: registers are few
    const auto [tile, h] = here();
    if (tile.count == 0) return;
    const SpanMask& mask = tile.sequence.mask;
    const KeyTiles tiles(mask, tile.first, tile.first + tile.count, kKeys);
    const int begin = static_cast<int>(mask.begin), end = static_cast<int>(mask.length), b = tile.b;
    const int row = tile.first + warp * 16 + lane / 4;  // and 8 further
    const T* key = rows_of<const T>(p.key, p, tile, h / p.group(), tile.sequence.first_key);
    const T* value = rows_of<const T>(p.value, p, tile, h / p.group(), tile.sequence.first_key);

    // Step i of the walk is stage i % 2; it begins where the walk before ended.
    const int top = tiles.end - 1 + first_stage, last = first_stage + tiles.end - tiles.begin;
    const auto next_stage = [&](int i) -> auto& {  // waits for stage i and starts to fill the other one
      copy_async_wait<0>();
      wgmma_publish();
      __syncthreads();
      if (i < last) {
        auto& stage = shared.stage[(i + 1) % 2];
        if (i + 1 < last) copy_keys(stage.key, key, p.key.row, top - i - 1, begin, end, thread);
        copy_keys(stage.value, value, p.value.row, top - i, begin, end, thread);
        copy_async_commit();
      }
      return shared.stage[i % 2];
    };
    const auto draw = [&] {
      if (thread == 0) store_shared(&shared.ticket[turn ^ 1], queue.draw());
    };

    RowState<Traits> state;
    if (first_stage < last) {
      float scores[kKeys / 8][4], correction[2];
      uint32_t left[kKeys / 16][4];
      const auto probabilities = [&](int n) {
        scale_scores<kKeys>(scores, launch.first_scale);
        if (!tiles.full(n)) {
          const SpanMask seen = here().tile.sequence.mask;
          const int row_end[2] = {static_cast<int>(seen.row_end(row)),
                                  static_cast<int>(seen.row_end(row + 8))};
          mask_scores<Traits>(scores, begin, row_end, n * kKeys, lane);
        }
        softmax_step<Traits>(scores, state, 0, launch.scale, correction);
        if (!launch.keep.active) return;
#pragma unroll
        for (int k = 0; k < kKeys; k += 64)
          drop<64>(reinterpret_cast<float (&)[8][4]>(scores[k / 8]),
                   draw_rows(launch.keep, b, h, row, n * kKeys + k, lane));
      };

      auto& first = next_stage(first_stage);
      wgmma_begin(scores);
      start_row_products<T, kKeys>(scores, shared.query[turn], group_row, first.key);
      wgmma_end();
      draw();  // all warps have left the tile before
      wgmma_wait<0>(scores);
      probabilities(top - first_stage);
      narrow_rows<T, kKeys>(left, scores);
      for (int i = first_stage + 1; i < last; ++i) {
        auto& stage = next_stage(i);
        wgmma_begin(scores, left, state.out[0]);
        start_row_products<T, kKeys>(scores, shared.query[turn], group_row, stage.key);
        wgmma_end();
        start_column_products<T, kKeys>(state.out[0], left, stage.value);
        wgmma_end();
        wgmma_wait<1>(scores);
        probabilities(top - i);
        wgmma_wait<0>(state.out[0], left);
        rescale_out<Traits>(state, 0, correction);
        narrow_rows<T, kKeys>(left, scores);
      }
      auto& stage = next_stage(last);
      wgmma_begin(left, state.out[0]);
      start_column_products<T, kKeys>(state.out[0], left, stage.value);
      wgmma_end();
      first_stage = (last + 1) % 2;
      start(load_shared(&shared.ticket[turn ^ 1]), turn ^ 1, first_stage, thread);
      wgmma_wait<0>(state.out[0], left);
    } else {
      __syncthreads();  // all warps have read the ticket before this one
      draw();
      __syncthreads();
      start(load_shared(&shared.ticket[turn ^ 1]), turn ^ 1, first_stage, thread);
    }
    const auto at = here();
    write_state<Traits>(launch, state, shared.query[turn], 0, at.tile, at.h, warp * 16, lane);
  }
}

}  // namespace

// Few rows leave most of a tile of 128 empty.
bool takes_warpgroups(const SpanAttention& p) {
  const int64_t rows = p.cu_seqlens == nullptr ? p.rows : p.rows / std::max(p.batch, int64_t{1});
  return rows > kTileRows && p.head_dim <= 128 && p.dtype != DType::f32 && has_wgmma();
}

void launch_forward_hopper(const ForwardLaunch& params, cudaStream_t stream) {
  const SpanAttention& p = params.problem;
  visit_attention(p, [&]<class T>(Type<T>, auto dim) {
    if constexpr (sizeof(T) == 2 && dim.value <= 128) {
      using Traits = HopperForwardTraits<T, dim.value>;
      launch_tile_list(p, TilesOf::rows, Traits::kRows, params.list, stream);
      const dim3 grid = tile_grid(p, TilesOf::rows, Traits::kRows);
      const int64_t size = int64_t{grid.x} * grid.y * grid.z;
      GLM_CHECK(size < int64_t{1} << 30, "query: expected fewer than 2^30 tiles of 128 rows, got ", size);
      const TileQueue queue = {
          .drawn = reinterpret_cast<int*>(params.list.data + TileList::size(p, kTileRows)),
          .tiles = static_cast<int>(grid.x),
          .heads = static_cast<int>(grid.y),
          .size = static_cast<int>(size),
      };
      zero_async(queue.drawn, sizeof(int), stream);
      const int blocks = std::min(queue.size, multiprocessors() * Traits::kBlocksPerSm);
      launch(forward_hopper_kernel<Traits>, dim3{static_cast<unsigned>(blocks), 1, 1},
             dim3{Traits::kThreads, 1, 1}, sizeof(typename Traits::Shared), stream, params, queue);
    }
  });
}

}  // namespace glm::cuda
