// What a block does with one tile of keys in backward: dK = scale dS^T Q and dV = P^T dO. K and V of the tile stay,
// and the queries that see them walk by, head after head of the group. Scores are computed transposed,
// S^T = K Q^T, 16 keys a warp. Where Traits::kWithQuery, the part that these keys have of dQ, dS K, goes to
// add_query.
#pragma once

#include "cuda/attention/backward.cuh"

namespace glm::cuda {

inline constexpr int kNoRow = std::numeric_limits<int>::max();  // sees this key: it is padding

// Rows that walk by. 32 of 128 floats would take more registers than there are; 64 of 128 bytes leave room for
// one block of a small card's SM.
template <class T, int kPaddedDim, Products kWay, Card kCard>
constexpr int key_walk() {
  if (kWay == Products::warpgroup) return kPaddedDim == 64 ? 64 : 32;
  if (kPaddedDim == 128 && sizeof(T) == 4) return 16;
  if (kPaddedDim * sizeof(T) <= 128 && kCard == Card::small) return 32;
  return kWarpWalk<T, kPaddedDim, kCard>;
}

template <class Element, int kPaddedDim, Products kWay, int kWalkRows, bool kAddsQuery, int kKeys = 64>
struct GradKeyTraits : BackwardTraits<Element, kPaddedDim, kWay, kWalkRows, kKeys> {
  using Base = BackwardTraits<Element, kPaddedDim, kWay, kWalkRows, kKeys>;
  static constexpr bool kWithQuery = kAddsQuery;
  static constexpr int kOut = kPaddedDim <= 128 ? kPaddedDim : 128;  // columns of dK and dV a block
  static constexpr int kParts = kPaddedDim / kOut;
  static constexpr int kBlocksPerSm = Base::kRowBytes <= 256 && Base::kTile == 64 ? 2 : 1;
  static constexpr int kQueryColumns = kPaddedDim * (kWalkRows / 16) / (kKeys / 16);  // of dQ a warp, 16 rows

  struct Shared {
    typename Base::Tiles tiles;
    RowStatistic statistics[Base::kStages][Base::kWalk];
    KeepBytes<Base::kWalk> keep[Base::kStages][Base::kTile / 64];
    std::conditional_t<kWithQuery, Panel<Element, Base::kTile, 64>, char>
        score_grads;  // [keys, rows that walk]
  };
};

// From scores to probabilities. kMasked: key g (g + 8) is seen by the rows from first[0] (first[1]) on.
template <bool kMasked, int kQueries>
__device__ __forceinline__ void key_probabilities(float (&scores)[kQueries / 8][4], float scale_log2,
                                                  const RowStatistic* statistics, const int (&first)[2],
                                                  int query0, int lane) {
#pragma unroll
  for (int j = 0; j < kQueries / 8; ++j) {
    const int column = j * 8 + lane % 4 * 2;
    const float lse[2] = {load_shared(&statistics[column].lse), load_shared(&statistics[column + 1].lse)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[j][i] = exp2_fast(fmaf(scores[j][i], scale_log2, -lse[i % 2]));
      if constexpr (kMasked)
        if (query0 + column + i % 2 < first[i / 2]) scores[j][i] = 0.0f;
    }
  }
}

// Whether dropout keeps element [j][i] of a lane.
__device__ __forceinline__ bool keeps_key(const uint32_t (&keep)[2], int j, int i) {
  return (keep[i / 2] >> (j / 2 * 4 + i % 2 * 2 + j % 2) & 1u) != 0;
}

// From dP to dS. kMasked: 0 where the key is not seen, whatever dP holds there.
template <bool kMasked, int kQueries>
__device__ __forceinline__ void key_gradients(float (&grads)[kQueries / 8][4],
                                              const float (&probabilities)[kQueries / 8][4],
                                              const RowStatistic* statistics, const KeepRule& rule,
                                              const uint32_t (&keep)[2], int lane) {
#pragma unroll
  for (int j = 0; j < kQueries / 8; ++j) {
    const int column = j * 8 + lane % 4 * 2;
    const RowStatistic rows[2] = {load_shared(statistics + column), load_shared(statistics + column + 1)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const RowStatistic& row = rows[i % 2];
      const float grad = keeps_key(keep, j, i) ? grads[j][i] * rule.scale : 0.0f;
      grads[j][i] = probabilities[j][i] * (grad - row.delta + row.grad_lse);
      if (kMasked && probabilities[j][i] == 0.0f) grads[j][i] = 0.0f;
    }
  }
}

template <int kQueries>
__device__ __forceinline__ void drop_keys(float (&probabilities)[kQueries / 8][4],
                                          const uint32_t (&keep)[2]) {
#pragma unroll
  for (int j = 0; j < kQueries / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (!keeps_key(keep, j, i)) probabilities[j][i] = 0.0f;
}

// A warp's gradients of scores to where all warps read them.
template <class T, int kQueries, int kKeys>
__device__ __forceinline__ void share_gradients(Panel<T, kKeys, 64>& shared,
                                                const float (&grads)[kQueries / 8][4], int warp, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int j = 0; j < kQueries / 8; ++j)
      store_shared(
          reinterpret_cast<uint32_t*>(chunk_at(shared, warp * 16 + half * 8 + lane / 4, j)) + lane % 4,
          narrow2<T>(grads[j][half * 2], grads[j][half * 2 + 1]));
}

// Which rows come by: those of a head from the first that sees any key on, then the next head's.
struct Walker {
  int h, query0;

  __device__ __forceinline__ void advance(int step, int first_query, int rows) {
    query0 += step;
    if (query0 < rows) return;
    query0 = first_query;
    ++h;
  }
};

template <class Traits, class AddQuery>
__device__ __forceinline__ void grad_key_tile(const BackwardLaunch& launch, typename Traits::Shared& shared,
                                              const Tile& tile, int kv_head, int part,
                                              const AddQuery& add_query) {
  using T = typename Traits::T;
  constexpr int kQueries = Traits::kWalk, kOut = Traits::kOut;
  const SpanAttention& p = launch.op.problem;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const SpanMask& mask = tile.sequence.mask;
  const int head_dim = static_cast<int>(p.head_dim);
  const int group = static_cast<int>(p.group()), rows = static_cast<int>(tile.sequence.rows);
  const int key = tile.first + warp * 16 + lane / 4;  // and 8 further: in the sequence

  // Keys that are no padding, and the tiles of rows that see any. A row before first_live sees nothing: what
  // it holds must not meet a zero in a product.
  const int begin = static_cast<int>(mask.max(mask.begin, tile.first)),
            end = static_cast<int>(mask.min(mask.length, tile.first + tile.count));
  const int first_live = static_cast<int>(mask.first_row(mask.begin));
  const int first_query = static_cast<int>(mask.first_row(begin)) / kQueries * kQueries,
            first_full = Traits::kWithQuery && end - begin < Traits::kTile
                             ? kNoRow
                             : static_cast<int>(mask.first_full_row(end));
  const int steps =
      begin < end && first_query < rows ? (rows - first_query + kQueries - 1) / kQueries * group : 0;
  const auto inside = [&](int j) { return begin <= j && j < end; };
  // Padding has zeros for keys, but what its gradient of a score is may be infinite: none where dQ needs it.
  const auto first_row_of = [&](int j) {
    return Traits::kWithQuery && !inside(j) ? kNoRow : static_cast<int>(mask.first_row(j));
  };
  const int first_row[2] = {first_row_of(key), first_row_of(key + 8)};

  Walker next = {kv_head * group, first_query}, now = next;  // of what is copied, and of what is worked on
  const auto start = [&](int step) {
    const auto [h, query0] = next;
    next.advance(kQueries, first_query, rows);
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
    start(0);
    copy_async_commit();
  }

  float grad_key[1][kOut / 8][4] = {}, grad_value[1][kOut / 8][4] = {};
  const auto prepare = [&](int step) {
    if (!launch.keep.active) return;
    const int sixty_four =
        static_cast<int>(threadIdx.x) / 128;  // which 64 of the keys: four warps draw for them
    draw_keys(shared.keep[step % Traits::kStages][sixty_four], launch.keep, tile.b, now.h, now.query0,
              tile.first + sixty_four * 64, static_cast<int>(threadIdx.x) % 128);
  };
  const auto work = [&](int step) {
    const auto [h, query0] = now;
    now.advance(kQueries, first_query, rows);
    auto& stage = shared.tiles.walking[step % Traits::kStages];
    const RowStatistic* statistics = shared.statistics[step % Traits::kStages];
    uint32_t keep[2] = {kAllLanes, kAllLanes};
    float scores[1][kQueries / 8][4], grads[1][kQueries / 8][4];
    const auto to_probabilities = [&] {
      if (launch.keep.active) take_keys(keep, shared.keep[step % Traits::kStages][warp / 4], warp % 4, lane);
      if (query0 >= first_full) {
        key_probabilities<false, kQueries>(scores[0], launch.scale_log2, statistics, first_row, query0, lane);
      } else {
        key_probabilities<true, kQueries>(scores[0], launch.scale_log2, statistics, first_row, query0, lane);
      }
    };
    const auto to_gradients = [&] {
      if (query0 >= first_full) {
        key_gradients<false, kQueries>(grads[0], scores[0], statistics, launch.keep, keep, lane);
      } else {
        key_gradients<true, kQueries>(grads[0], scores[0], statistics, launch.keep, keep, lane);
      }
    };
    if constexpr (Traits::kWarpgroup) {
      uint32_t left[2][kQueries / 16][4];
      wgmma_begin(scores[0], grads[0]);
      start_row_products<T, kQueries>(scores[0], shared.tiles.fixed[0], 0, stage[0]);
      wgmma_end();
      start_row_products<T, kQueries>(grads[0], shared.tiles.fixed[1], 0, stage[1]);
      wgmma_end();
      wgmma_wait<1>(scores[0]);
      to_probabilities();
      if (launch.keep.active) {
        float kept[kQueries / 8][4];
#pragma unroll
        for (int j = 0; j < kQueries / 8; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) kept[j][i] = keeps_key(keep, j, i) ? scores[0][j][i] : 0.0f;
        narrow_rows<T, kQueries>(left[0], kept);
      } else {
        narrow_rows<T, kQueries>(left[0], scores[0]);
      }
      wgmma_begin(left[0], grad_value[0]);
      start_column_products<T, kQueries, kOut>(grad_value[0], left[0], stage[1]);
      wgmma_end();
      wgmma_wait<1>(grads[0]);
      to_gradients();
      narrow_rows<T, kQueries>(left[1], grads[0]);
      wgmma_begin(left[1], grad_key[0]);
      start_column_products<T, kQueries, kOut>(grad_key[0], left[1], stage[0]);
      wgmma_end();
      wgmma_wait<0>(grad_key[0], grad_value[0], left[0], left[1]);
    } else {
#pragma unroll
      for (int j = 0; j < kQueries / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[0][j][i] = grads[0][j][i] = 0.0f;
      add_row_products<Traits::kProducts, T, kQueries, true>(scores, shared.tiles.fixed[0], warp * 16,
                                                             stage[0], lane);
      add_row_products<Traits::kProducts, T, kQueries, true>(grads, shared.tiles.fixed[1], warp * 16,
                                                             stage[1], lane);
      to_probabilities();
      to_gradients();
      if constexpr (Traits::kWithQuery)
        share_gradients<T, kQueries>(shared.score_grads, grads[0], warp, lane);
      if (launch.keep.active) drop_keys<kQueries>(scores[0], keep);
      add_column_products<Traits::kProducts, T, kQueries, kOut>(grad_value, scores,
                                                                columns_from<kOut>(stage[1], part), lane);
      add_column_products<Traits::kProducts, T, kQueries, kOut>(grad_key, grads,
                                                                columns_from<kOut>(stage[0], part), lane);
      if constexpr (Traits::kWithQuery) {
        __syncthreads();  // the other warps' gradients are there
        constexpr int kRowGroups = kQueries / 16, kColumns = Traits::kQueryColumns;
        const int row = warp % kRowGroups * 16, column = warp / kRowGroups * kColumns;
        float sums[1][kColumns / 8][4] = {};
        add_column_products_transposed<T, kColumns>(sums, shared.score_grads, row, shared.tiles.fixed[0],
                                                    column, lane);
        add_query(h, query0 + row, column, sums[0]);
      }
    }
  };
  walk<Traits>(steps, start, prepare, work);
  if constexpr (Traits::kWithQuery || Traits::kWarpgroup) __syncthreads();  // all warps have read all keys

  // A key that is padding was a row of zeros, whose sums are of no use.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (inside(key + half * 8)) continue;
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

}  // namespace glm::cuda
