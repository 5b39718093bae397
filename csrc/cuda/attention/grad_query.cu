// dQ = scale dS K: a block keeps 64 rows of Q and dO, a warp 16 of them, and the keys that they see walk by,
// from right to left as in forward.
#include "cuda/attention/backward.cuh"

namespace glm::cuda {
namespace {

// Keys that walk by.
template <class T, int kPaddedDim, Products kWay, Card kCard>
inline constexpr int kQueryWalk = kWay == Products::warpgroup ? 64 : kWarpWalk<T, kPaddedDim, kCard>;

template <class Element, int kPaddedDim, Products kWay, int kWalkRows>
struct GradQueryTraits : BackwardTraits<Element, kPaddedDim, kWay, kWalkRows> {
  using Base = BackwardTraits<Element, kPaddedDim, kWay, kWalkRows>;
  using Shared = typename Base::Tiles;
  static constexpr int kBlocksPerSm = Base::kRowBytes <= 128 ? 3 : Base::kRowBytes <= 256 ? 2 : 1;
};

// From scores to probabilities. kMasked: row g (g + 8) sees keys [begin, end[0]) ([begin, end[1])).
template <bool kMasked, int kKeys>
__device__ __forceinline__ void row_probabilities(float (&scores)[kKeys / 8][4], float scale_log2,
                                                  const RowStatistic (&statistics)[2], int begin,
                                                  const int (&end)[2], int key0, int lane) {
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[j][i] = exp2_fast(fmaf(scores[j][i], scale_log2, -statistics[i / 2].lse));
      if constexpr (kMasked) {
        const int key = key0 + j * 8 + lane % 4 * 2 + i % 2;
        if (key < begin || key >= end[i / 2]) scores[j][i] = 0.0f;
      }
    }
}

// From probabilities and dP to dS, in their place. kMasked: what is not seen stays 0, whatever dP holds there.
template <bool kMasked, int kKeys>
__device__ __forceinline__ void row_gradients(float (&scores)[kKeys / 8][4],
                                              const float (&grads)[kKeys / 8][4],
                                              const RowStatistic (&statistics)[2], const KeepRule& rule,
                                              uint32_t keep) {
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const RowStatistic& row = statistics[i / 2];
      const float grad = (keep >> (j * 4 + i) & 1u) != 0 ? grads[j][i] * rule.scale : 0.0f;
      if (!kMasked || scores[j][i] != 0.0f) scores[j][i] *= grad - row.delta + row.grad_lse;
    }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocksPerSm)
    grad_query_kernel(BackwardLaunch launch) {
  if constexpr (Traits::kWarpgroup && !kHasWgmma) return wrong_architecture();
  using T = typename Traits::T;
  constexpr int kDim = Traits::kHeadDim, kKeys = Traits::kWalk;
  auto& shared = shared_memory<typename Traits::Shared>();
  const SpanAttention& p = launch.op.problem;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const Tile tile = find_tile<TilesOf::rows>(p, launch.rows, static_cast<int>(blockIdx.x));
  if (tile.count == 0) return;
  const SpanMask& mask = tile.sequence.mask;
  const int h = static_cast<int>(blockIdx.y), head_dim = static_cast<int>(p.head_dim);
  const int64_t kv_head = h / p.group();
  const int row = tile.first + warp * 16 + lane / 4;  // and 8 further: in the sequence

  const T* query = rows_of<T>(p.query, p, tile, h, tile.sequence.first_row);
  const T* grad_out = rows_of<T>(launch.op.grad_out, p, tile, h, tile.sequence.first_row);
  const T* key = rows_of<T>(p.key, p, tile, kv_head, tile.sequence.first_key);
  const T* value = rows_of<T>(p.value, p, tile, kv_head, tile.sequence.first_key);

  const KeyTiles tiles(mask, tile.first, tile.first + tile.count, kKeys);
  const int begin = static_cast<int>(mask.begin), end = static_cast<int>(mask.length);
  const int row_end[2] = {static_cast<int>(mask.row_end(row)), static_cast<int>(mask.row_end(row + 8))};
  const int steps = tiles.end - tiles.begin;
  const auto start = [&](int step) {
    const int key0 = (tiles.end - 1 - step) * kKeys;
    auto& stage = shared.walking[step % Traits::kStages];
    copy_rows<Traits::kThreads>(stage[0], key, p.key.row, key0, begin, end, head_dim);
    copy_rows<Traits::kThreads>(stage[1], value, p.value.row, key0, begin, end, head_dim);
  };
  if (steps > 0) {
    const int last = tile.first + tile.count;
    copy_rows<Traits::kThreads>(shared.fixed[0], query, p.query.row, tile.first, 0, last, head_dim);
    copy_rows<Traits::kThreads>(shared.fixed[1], grad_out, launch.op.grad_out.row, tile.first, 0, last,
                                head_dim);
    start(0);
    copy_async_commit();
  }
  const RowStatistic* place = launch.statistics.of(p, tile, h) + row;
  const RowStatistic statistics[2] = {load_global(place), load_global(place + 8)};

  float sums[1][kDim / 8][4] = {};
  uint32_t keep = kAllLanes;  // of 64 keys
  const auto work = [&](int step) {
    auto& stage = shared.walking[step % Traits::kStages];
    const int n = tiles.end - 1 - step, key0 = n * kKeys;
    float scores[1][kKeys / 8][4], grads[1][kKeys / 8][4];
    const auto to_probabilities = [&] {
      if (launch.keep.active && (step == 0 || (key0 + kKeys) % 64 == 0))
        keep = draw_rows(launch.keep, tile.b, h, row, key0, lane);
      if (tiles.full(n)) {
        row_probabilities<false, kKeys>(scores[0], launch.scale_log2, statistics, begin, row_end, key0, lane);
      } else {
        row_probabilities<true, kKeys>(scores[0], launch.scale_log2, statistics, begin, row_end, key0, lane);
      }
    };
    const auto to_gradients = [&] {
      const uint32_t bits = keep >> key0 % 64 / 8 * 4;
      if (tiles.full(n)) {
        row_gradients<false, kKeys>(scores[0], grads[0], statistics, launch.keep, bits);
      } else {
        row_gradients<true, kKeys>(scores[0], grads[0], statistics, launch.keep, bits);
      }
    };
    if constexpr (Traits::kWarpgroup) {
      uint32_t left[kKeys / 16][4];
      wgmma_begin(scores[0], grads[0]);
      start_row_products<T, kKeys>(scores[0], shared.fixed[0], 0, stage[0]);
      wgmma_end();
      start_row_products<T, kKeys>(grads[0], shared.fixed[1], 0, stage[1]);
      wgmma_end();
      wgmma_wait<1>(scores[0]);
      to_probabilities();
      wgmma_wait<0>(grads[0]);
      to_gradients();
      narrow_rows<T, kKeys>(left, scores[0]);
      wgmma_begin(left, sums[0]);
      start_column_products<T, kKeys, kDim>(sums[0], left, stage[0]);
      wgmma_end();
      wgmma_wait<0>(sums[0], left);
    } else {
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[0][j][i] = grads[0][j][i] = 0.0f;
      add_row_products<Traits::kProducts, T, kKeys>(scores, shared.fixed[0], warp * 16, stage[0], lane);
      add_row_products<Traits::kProducts, T, kKeys>(grads, shared.fixed[1], warp * 16, stage[1], lane);
      to_probabilities();
      to_gradients();
      add_column_products<Traits::kProducts, T, kKeys, kDim>(sums, scores, stage[0], lane);
    }
  };
  walk<Traits>(steps, start, [](int) {}, work);
  if constexpr (Traits::kWarpgroup) __syncthreads();  // all warps have read all rows of Q and dO
  T* out = rows_of<T>(launch.op.grad_query, p, tile, h, tile.sequence.first_row);
  const int64_t stride = launch.op.grad_query.row;
  write_rows<T, kDim>(out + (tile.first + warp * 16) * stride, stride, sums[0], {launch.scale, launch.scale},
                      shared.fixed[0], warp * 16, tile.count - warp * 16, head_dim, lane);
}

}  // namespace

void launch_grad_query(const BackwardLaunch& params, cudaStream_t stream) {
  const SpanAttention& p = params.op.problem;
  visit_backward(p, [&]<class T>(Type<T>, auto dim, auto products, auto card) {
    constexpr int kWalk = kQueryWalk<T, dim.value, products.value, card.value>;
    using Traits = GradQueryTraits<T, dim.value, products.value, kWalk>;
    constexpr int64_t kSharedBytes = sizeof(typename Traits::Shared);
    static_assert(finds_room(card.value, kSharedBytes, Traits::kBlocksPerSm));
    launch(grad_query_kernel<Traits>, tile_grid(p, TilesOf::rows, kTileRows), dim3{Traits::kThreads, 1, 1},
           kSharedBytes, stream, params);
  });
}

}  // namespace glm::cuda
