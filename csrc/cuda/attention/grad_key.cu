// dK = scale dS^T Q and dV = P^T dO: a block keeps 64 rows of K and V, a warp 16 of them, and the queries
// that see them walk by, head after head of the group. Scores are computed transposed, S^T = K Q^T. Head dim
// 256 has more sums than registers: each of two blocks takes 128 columns of dK and dV, and both compute the
// scores.
#include "cuda/attention/backward.cuh"

namespace glm::cuda {
namespace {

template <class Element, int kPaddedDim>
struct GradKeyTraits : BackwardTraits<Element, kPaddedDim> {
  using Base = BackwardTraits<Element, kPaddedDim>;
  static constexpr int kOut = kPaddedDim <= 128 ? kPaddedDim : 128;  // columns of dK and dV a block
  static constexpr int kParts = kPaddedDim / kOut;
  static constexpr int kBlocksPerSm = Base::kRowBytes <= 256 ? 2 : 1;

  struct Shared {
    typename Base::Tiles tiles;
    RowStatistic statistics[Base::kStages][Base::kWalk];
    KeepBytes<Base::kWalk> keep;
  };
  static_assert(sizeof(Shared) * kBlocksPerSm <= 163 * 1024, "shared memory of an sm_80");
};

// From scores (in base 2) to dropped probabilities and from dP to dS. kMasked: key g (g + 8) is seen by the
// rows from first[0] (first[1]) on.
template <bool kMasked, int kQueries>
__device__ __forceinline__ void probabilities_and_gradients(float (&scores)[kQueries / 8][4],
                                                            float (&grads)[kQueries / 8][4],
                                                            const RowStatistic* statistics,
                                                            const KeepRule& rule, const uint32_t (&keep)[2],
                                                            const int (&first)[2], int query0, int lane) {
#pragma unroll
  for (int j = 0; j < kQueries / 8; ++j) {
    const int column = j * 8 + lane % 4 * 2;
    const RowStatistic rows[2] = {load_shared(statistics + column), load_shared(statistics + column + 1)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const RowStatistic& row = rows[i % 2];
      const bool kept = (keep[i / 2] >> (j / 2 * 4 + i % 2 * 2 + j % 2) & 1u) != 0;
      const float probability = exp2_fast(scores[j][i] - row.lse);
      scores[j][i] = kept ? probability : 0.0f;
      grads[j][i] = probability * ((kept ? grads[j][i] * rule.scale : 0.0f) - row.delta + row.grad_lse);
      if constexpr (kMasked)
        if (query0 + column + i % 2 < first[i / 2]) scores[j][i] = grads[j][i] = 0.0f;
    }
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocksPerSm)
    grad_key_kernel(BackwardLaunch launch) {
  using T = typename Traits::T;
  constexpr int kQueries = Traits::kWalk, kOut = Traits::kOut;
  auto& shared = shared_memory<typename Traits::Shared>();
  const SpanAttention& p = launch.op.problem;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int part = static_cast<int>(blockIdx.x) % Traits::kParts * kOut;  // first column
  const Tile tile = find_tile<TilesOf::keys>(p, launch.keys, static_cast<int>(blockIdx.x) / Traits::kParts);
  if (tile.count == 0) return;
  const SpanMask& mask = tile.sequence.mask;
  const int kv_head = static_cast<int>(blockIdx.y), head_dim = static_cast<int>(p.head_dim);
  const int group = static_cast<int>(p.group()), rows = static_cast<int>(tile.sequence.rows);
  const int key = tile.first + warp * 16 + lane / 4;  // and 8 further: in the sequence

  // Keys that are no padding, and the tiles of rows that see any. A row before first_live sees nothing: what
  // it holds must not meet a zero in a product.
  const int begin = static_cast<int>(mask.max(mask.begin, tile.first)),
            end = static_cast<int>(mask.min(mask.length, tile.first + tile.count));
  const int first_live = static_cast<int>(mask.first_row(mask.begin));
  const int m_begin = static_cast<int>(mask.first_row(begin)) / kQueries,
            first_full = static_cast<int>(mask.first_full_row(end));
  const int tiles =
      begin < end ? static_cast<int>(mask.max(0, (rows + kQueries - 1) / kQueries - m_begin)) : 0;
  const int first_row[2] = {static_cast<int>(mask.first_row(key)), static_cast<int>(mask.first_row(key + 8))};

  constexpr int kAhead = Traits::kStages - 1;
  const int steps = group * tiles;
  const auto fetch = [&](int step) {
    const int h = kv_head * group + step / tiles, query0 = (m_begin + step % tiles) * kQueries;
    const int at = step % Traits::kStages;
    auto& stage = shared.tiles.walking[at];
    copy_rows<Traits::kThreads>(stage[0], rows_of<const T>(p.query, p, tile, h, tile.sequence.first_row),
                                p.query.row, query0, first_live, rows, head_dim);
    copy_rows<Traits::kThreads>(stage[1],
                                rows_of<const T>(launch.op.grad_out, p, tile, h, tile.sequence.first_row),
                                launch.op.grad_out.row, query0, first_live, rows, head_dim);
    const int row = static_cast<int>(threadIdx.x);
    if (row < kQueries)
      copy_async(&shared.statistics[at][row], launch.statistics.of(p, tile, h) + query0 + row, true);
  };
  if (steps > 0) {
    copy_rows<Traits::kThreads>(shared.tiles.fixed[0],
                                rows_of<const T>(p.key, p, tile, kv_head, tile.sequence.first_key), p.key.row,
                                tile.first, begin, end, head_dim);
    copy_rows<Traits::kThreads>(shared.tiles.fixed[1],
                                rows_of<const T>(p.value, p, tile, kv_head, tile.sequence.first_key),
                                p.value.row, tile.first, begin, end, head_dim);
    if (kAhead > 0) fetch(0);
    copy_async_commit();
  }

  float grad_key[1][kOut / 8][4] = {}, grad_value[1][kOut / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    const int h = kv_head * group + step / tiles, query0 = (m_begin + step % tiles) * kQueries;
    auto& stage = shared.tiles.walking[step % Traits::kStages];
    if (step + kAhead < steps) fetch(step + kAhead);
    copy_async_commit();
    if (launch.keep.active)
      draw_keys<Traits::kThreads>(shared.keep, launch.keep, tile.b, h, query0, tile.first);
    copy_async_wait<kAhead>();
    __syncthreads();

    float scores[1][kQueries / 8][4] = {}, grads[1][kQueries / 8][4] = {};
    add_row_products<T, kQueries, true>(scores, shared.tiles.fixed[0], warp * 16, stage[0], lane);
    add_row_products<T, kQueries, true>(grads, shared.tiles.fixed[1], warp * 16, stage[1], lane);
#pragma unroll
    for (int j = 0; j < kQueries / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[0][j][i] *= launch.scale_log2;
    uint32_t keep[2] = {kAllLanes, kAllLanes};
    if (launch.keep.active) take_keys(keep, shared.keep, warp, lane);
    const RowStatistic* statistics = shared.statistics[step % Traits::kStages];
    if (query0 >= first_full) {
      probabilities_and_gradients<false, kQueries>(scores[0], grads[0], statistics, launch.keep, keep,
                                                   first_row, query0, lane);
    } else {
      probabilities_and_gradients<true, kQueries>(scores[0], grads[0], statistics, launch.keep, keep,
                                                  first_row, query0, lane);
    }
    add_column_products<T, kQueries, kOut>(grad_value, scores, columns_from<kOut>(stage[1], part), lane);
    add_column_products<T, kQueries, kOut>(grad_key, grads, columns_from<kOut>(stage[0], part), lane);
    __syncthreads();  // the stage is free again
  }
  copy_async_wait<0>();

  // A key that is padding was a row of zeros, whose sums are of no use.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (begin <= key + half * 8 && key + half * 8 < end) continue;
#pragma unroll
    for (int d = 0; d < kOut / 8; ++d) {
      grad_key[0][d][half * 2] = grad_key[0][d][half * 2 + 1] = 0.0f;
      grad_value[0][d][half * 2] = grad_value[0][d][half * 2 + 1] = 0.0f;
    }
  }
  const auto place = [&](const AttentionRows& x) {
    return rows_of<T>(x, p, tile, kv_head, tile.sequence.first_key) + (tile.first + warp * 16) * x.row + part;
  };
  const int left = tile.count - warp * 16;
  write_rows<T, kOut>(place(launch.op.grad_key), launch.op.grad_key.row, grad_key[0],
                      {launch.scale, launch.scale}, shared.tiles.fixed[0], warp * 16, left, head_dim - part,
                      lane);
  write_rows<T, kOut>(place(launch.op.grad_value), launch.op.grad_value.row, grad_value[0],
                      {launch.keep.scale, launch.keep.scale}, shared.tiles.fixed[1], warp * 16, left,
                      head_dim - part, lane);
}

}  // namespace

void launch_grad_key_and_value(const BackwardLaunch& params, cudaStream_t stream) {
  const SpanAttention& p = params.op.problem;
  visit_attention(p, [&]<class T>(Type<T>, auto dim) {
    using Traits = GradKeyTraits<T, dim.value>;
    dim3 grid = tile_grid(p, TilesOf::keys, kTileRows);
    grid.x *= Traits::kParts;
    launch(grad_key_kernel<Traits>, grid, dim3{Traits::kThreads, 1, 1}, sizeof(typename Traits::Shared),
           stream, params);
  });
}

}  // namespace glm::cuda
