// Attention forward on Hopper, for 16-bit elements and head dims up to 128: as attention/forward.cu, but the
// products are those of warpgroups, and run while the softmax of the scores before them is computed. A block
// has 128 rows, a warpgroup 64 of them. Step i of the walk computes the scores of tile i and adds the values of
// tile i - 1, whose keys and values arrive together.
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
    Panel<T, kRows, kHeadDim> query;  // and the output on its way out
    struct {
      Panel<T, kKeys, kHeadDim> key, value;  // of a tile, and of the one before it
    } stage[2];
  };
  static_assert(finds_room(Card::hopper, sizeof(Shared), kBlocksPerSm));
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocksPerSm)
    forward_hopper_kernel(ForwardLaunch launch) {
  if constexpr (!kHasWgmma) return wrong_architecture();
  using T = typename Traits::T;
  constexpr int kKeys = Traits::kKeys;
  auto& shared = shared_memory<typename Traits::Shared>();
  const SpanAttention& p = launch.problem;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const Tile tile = find_tile<TilesOf::rows, Traits::kRows>(p, launch.list, static_cast<int>(blockIdx.x));
  if (tile.count == 0) return;
  const SpanMask& mask = tile.sequence.mask;
  const int h = static_cast<int>(blockIdx.y), head_dim = static_cast<int>(p.head_dim);
  const int64_t kv_head = h / p.group();
  const int group_row = warp / 4 * 64, row = tile.first + warp * 16 + lane / 4;  // and 8 further

  const T* query = rows_of<T>(p.query, p, tile, h, tile.sequence.first_row);
  const T* key = rows_of<T>(p.key, p, tile, kv_head, tile.sequence.first_key);
  const T* value = rows_of<T>(p.value, p, tile, kv_head, tile.sequence.first_key);

  const KeyTiles tiles(mask, tile.first, tile.first + tile.count, kKeys);
  const int begin = static_cast<int>(mask.begin), end = static_cast<int>(mask.length);
  const int steps = tiles.end - tiles.begin;
  const auto fetch = [&](int i) {  // keys that nobody sees become zeros: 0 * NaN would leak from padding
    auto& stage = shared.stage[i % 2];
    const int n = tiles.end - 1 - i;
    if (i < steps) copy_rows<Traits::kThreads>(stage.key, key, p.key.row, n * kKeys, begin, end, head_dim);
    if (i > 0)
      copy_rows<Traits::kThreads>(stage.value, value, p.value.row, (n + 1) * kKeys, begin, end, head_dim);
    copy_async_commit();
  };
  const auto next_stage = [&](int i) -> auto& {  // waits for stage i and starts to fill the other one
    copy_async_wait<0>();
    wgmma_publish();
    __syncthreads();
    if (i < steps) fetch(i + 1);
    return shared.stage[i % 2];
  };

  RowState<Traits> state;
  if (steps > 0) {
    copy_rows<Traits::kThreads>(shared.query, query, p.query.row, tile.first, 0, tile.first + tile.count,
                                head_dim);
    fetch(0);
    float scores[kKeys / 8][4], correction[2];
    uint32_t left[kKeys / 16][4];
    const auto probabilities = [&](int i) {
      const int n = tiles.end - 1 - i, key0 = n * kKeys;
      scale_scores<kKeys>(scores, launch.first_scale);
      if (!tiles.full(n)) mask_scores<Traits>(scores, mask, row, key0, lane);
      softmax_step<Traits>(scores, state, 0, launch.scale, correction);
      if (!launch.keep.active) return;
#pragma unroll
      for (int k = 0; k < kKeys; k += 64)
        drop<64>(reinterpret_cast<float (&)[8][4]>(scores[k / 8]),
                 draw_rows(launch.keep, tile.b, h, row, key0 + k, lane));
    };

    auto& first = next_stage(0);
    wgmma_begin(scores);
    start_row_products<T, kKeys>(scores, shared.query, group_row, first.key);
    wgmma_end();
    wgmma_wait<0>(scores);
    probabilities(0);
    narrow_rows<T, kKeys>(left, scores);
    for (int i = 1; i < steps; ++i) {
      auto& stage = next_stage(i);
      wgmma_begin(scores, left, state.out[0]);
      start_row_products<T, kKeys>(scores, shared.query, group_row, stage.key);
      wgmma_end();
      start_column_products<T, kKeys>(state.out[0], left, stage.value);
      wgmma_end();
      wgmma_wait<1>(scores);
      probabilities(i);
      wgmma_wait<0>(state.out[0], left);
      rescale_out<Traits>(state, 0, correction);
      narrow_rows<T, kKeys>(left, scores);
    }
    auto& last = next_stage(steps);
    wgmma_begin(left, state.out[0]);
    start_column_products<T, kKeys>(state.out[0], left, last.value);
    wgmma_end();
    wgmma_wait<0>(state.out[0], left);
  }
  write_state<Traits>(launch, state, shared.query, 0, tile, h, warp * 16, lane);
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
      launch(forward_hopper_kernel<Traits>, tile_grid(p, TilesOf::rows, Traits::kRows),
             dim3{Traits::kThreads, 1, 1}, sizeof(typename Traits::Shared), stream, params);
    }
  });
}

}  // namespace glm::cuda
