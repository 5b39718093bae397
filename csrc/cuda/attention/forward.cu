// out = dropout(softmax(scale Q K^T)) V under GLM's mask, for sm_80 and later.
//
// A block takes 64 query rows of one head, a warp 16 of them (long sequences: twice as many, which halves
// what is read for each), and walks the key tiles that they see from right to left: S = Q K^T and O += P V by
// mma.sync (attention/product.cuh), softmax online in base 2 (Dao, "FlashAttention-2", 2023), K and V of the
// next tile on their way by cp.async. What a tile is comes from integers alone (core/span_mask.h):
//
//     keys   0 ... begin | begin ............ full_end | ......... seen_end | ...... T
//            never read  | every row sees them         | some rows do       | never read
//
// so that only the tiles that a boundary cuts run the code of the mask. Head dims are padded to 64, 128 or
// 256 with zeros in shared memory.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cuda/attention/dropout.cuh"
#include "cuda/attention/product.cuh"
#include "cuda/attention/split.cuh"
#include "cuda/kernels.h"

namespace glm::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kLog2E = 1.4426950408889634074;
constexpr float kLn2 = 0.69314718055994530942f;

template <class Element, int kPaddedDim, int kSixteens>
struct ForwardTraits {
  using T = Element;
  static constexpr int kHeadDim = kPaddedDim;
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(T));
  static constexpr int kM = kSixteens;   // of rows a warp
  static constexpr int kRows = 64 * kM;  // 4 warps
  static constexpr int kKeys = kRowBytes > 512 ? 16 : kRowBytes > 128 && kM == 2 ? 32 : 64;
  static constexpr int kStages = kRowBytes <= 512 ? 2 : 1;
  static constexpr int kThreads = 128;
  static constexpr int kBlocksPerSm = kRowBytes <= 128 && kM == 1 ? 3 : kRowBytes <= 256 ? 2 : 1;

  struct Shared {
    Panel<T, kRows, kHeadDim> query;  // and the output on its way out
    Panel<T, kKeys, kHeadDim> key[kStages], value[kStages];
  };
  static_assert(sizeof(Shared) * kBlocksPerSm <= 163 * 1024, "shared memory of an sm_80");
};

// What of a launch is the same for all blocks.
struct ForwardLaunch {
  SpanAttention problem;
  AttentionRows out, lse;
  float scale_log2;  // scores are kept in base 2
  KeepRule keep;
  TileList list;
  SplitKeys split;
};

// One warp's rows while it walks the keys. Lane (g, t) = (lane / 4, lane % 4) holds rows g and g + 8 of
// each 16.
template <class Traits>
struct RowState {
  float out[Traits::kM][Traits::kHeadDim / 8][4] = {};
  float top[Traits::kM][2];         // running maximum
  float total[Traits::kM][2] = {};  // running sum of this lane's columns

  __device__ __forceinline__ RowState() {
#pragma unroll
    for (int m = 0; m < Traits::kM; ++m) top[m][0] = top[m][1] = -kInfinity;
  }
};

// -inf where a row does not see the key.
template <class Traits>
__device__ __forceinline__ void mask_scores(float (&scores)[Traits::kKeys / 8][4], const SpanMask& mask,
                                            int row, int key0, int lane) {
  const int begin = static_cast<int>(mask.begin);
  const int end[2] = {static_cast<int>(mask.row_end(row)), static_cast<int>(mask.row_end(row + 8))};
#pragma unroll
  for (int j = 0; j < Traits::kKeys / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = key0 + j * 8 + lane % 4 * 2 + i % 2;
      if (key < begin || key >= end[i / 2]) scores[j][i] = -kInfinity;
    }
}

// Turns scores into probabilities relative to the new maximum and moves the state over to it.
template <class Traits>
__device__ __forceinline__ void softmax_step(float (&scores)[Traits::kKeys / 8][4], RowState<Traits>& state,
                                             int m) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = state.top[m][half];
#pragma unroll
    for (int j = 0; j < Traits::kKeys / 8; ++j)
      top = fmaxf(top, fmaxf(scores[j][half * 2], scores[j][half * 2 + 1]));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    const float base = top == -kInfinity ? 0.0f : top;  // a row that has seen nothing yet
    const float correction = exp2_fast(state.top[m][half] - base);
    state.top[m][half] = top;
    state.total[m][half] *= correction;
#pragma unroll
    for (int j = 0; j < Traits::kKeys / 8; ++j)
#pragma unroll
      for (int i = half * 2; i < half * 2 + 2; ++i) {
        scores[j][i] = exp2_fast(scores[j][i] - base);
        state.total[m][half] += scores[j][i];
      }
#pragma unroll
    for (int d = 0; d < Traits::kHeadDim / 8; ++d) {
      state.out[m][d][half * 2] *= correction;
      state.out[m][d][half * 2 + 1] *= correction;
    }
  }
}

// A split's result for rows g and g + 8.
template <class Traits>
__device__ __forceinline__ void write_partial(const ForwardLaunch& launch,
                                              const float (&sums)[Traits::kHeadDim / 8][4],
                                              const float (&inverse)[2], const float (&lse)[2], int split,
                                              const Tile& tile, int h, int row, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = row + half * 8;
    if (i >= tile.first + tile.count) continue;
    const SpanAttention& p = launch.problem;
    const int64_t place = (tile.b * p.heads + h) * p.rows + i;
    float* out = launch.split.out_of(p, split, place);
#pragma unroll
    for (int d = 0; d < Traits::kHeadDim / 8; ++d) {
      const int column = d * 8 + lane % 4 * 2;
      if (column < p.head_dim)
        store_global(
            reinterpret_cast<Pack<float, 2>*>(out + column),
            Pack<float, 2>{{sums[d][half * 2] * inverse[half], sums[d][half * 2 + 1] * inverse[half]}});
    }
    if (lane % 4 == 0) store_global(launch.split.lse_of(split, place), lse[half]);
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocksPerSm)
    forward_kernel(ForwardLaunch launch) {
  using T = typename Traits::T;
  constexpr int kDim = Traits::kHeadDim, kKeys = Traits::kKeys;
  auto& shared = shared_memory<typename Traits::Shared>();
  const SpanAttention& p = launch.problem;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int split = static_cast<int>(blockIdx.x) % launch.split.splits;
  const Tile tile = find_tile<TilesOf::rows, Traits::kRows>(
      p, launch.list, static_cast<int>(blockIdx.x) / launch.split.splits);
  if (tile.count == 0) return;
  const SpanMask& mask = tile.sequence.mask;
  const int h = static_cast<int>(blockIdx.y), head_dim = static_cast<int>(p.head_dim);
  const int64_t kv_head = h / p.group();
  const int warp_row = warp * 16 * Traits::kM;
  const int row0 = tile.first + warp_row + lane / 4;  // and 8 further, of each 16: in the sequence

  const T* query = rows_of<T>(p.query, p, tile, h, tile.sequence.first_row);
  const T* key = rows_of<T>(p.key, p, tile, kv_head, tile.sequence.first_key);
  const T* value = rows_of<T>(p.value, p, tile, kv_head, tile.sequence.first_key);

  KeyTiles tiles(mask, tile.first, tile.first + tile.count, kKeys);
  if (launch.split.splits > 1) tiles.keep_share(split, launch.split.splits);
  const int begin = static_cast<int>(mask.begin), end = static_cast<int>(mask.length);

  constexpr int kAhead = Traits::kStages - 1;
  const auto fetch = [&](int n) {  // keys that nobody sees become zeros: 0 * NaN would leak from padding
    const int stage = (tiles.end - 1 - n) % Traits::kStages;
    copy_rows<Traits::kThreads>(shared.key[stage], key, p.key.row, n * kKeys, begin, end, head_dim);
    copy_rows<Traits::kThreads>(shared.value[stage], value, p.value.row, n * kKeys, begin, end, head_dim);
  };
  if (tiles.begin < tiles.end) {
    copy_rows<Traits::kThreads>(shared.query, query, p.query.row, tile.first, 0, tile.first + tile.count,
                                head_dim);
    if (kAhead > 0) fetch(tiles.end - 1);
    copy_async_commit();
  }

  RowState<Traits> state;
  uint32_t keep[Traits::kM] = {};  // of 64 keys
  for (int n = tiles.end - 1; n >= tiles.begin; --n) {
    const int stage = (tiles.end - 1 - n) % Traits::kStages, key0 = n * kKeys;
    if (n - kAhead >= tiles.begin) fetch(n - kAhead);
    copy_async_commit();
    copy_async_wait<kAhead>();
    __syncthreads();

    float scores[Traits::kM][kKeys / 8][4] = {};
    add_row_products<T, kKeys>(scores, shared.query, warp_row, shared.key[stage], lane);
    const bool full = tiles.full(n);
#pragma unroll
    for (int m = 0; m < Traits::kM; ++m) {
      const int row = row0 + m * 16;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[m][j][i] *= launch.scale_log2;
      if (!full) mask_scores<Traits>(scores[m], mask, row, key0, lane);
      softmax_step<Traits>(scores[m], state, m);
      if (!launch.keep.active) continue;
      if (n == tiles.end - 1 || (key0 + kKeys) % 64 == 0)
        keep[m] = draw_rows(launch.keep, tile.b, h, row, key0, lane);
      const uint32_t bits = keep[m] >> key0 % 64 / 8 * 4;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if ((bits >> (j * 4 + i) & 1u) == 0) scores[m][j][i] = 0.0f;
    }
    add_column_products<T, kKeys, kDim, true>(state.out, scores, shared.value[stage], lane);
    __syncthreads();  // the stage is free again
  }
  copy_async_wait<0>();

#pragma unroll
  for (int m = 0; m < Traits::kM; ++m) {
    const int row = row0 + m * 16;
    float inverse[2], lse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = state.total[m][half];
      total += __shfl_xor_sync(kAllLanes, total, 1);
      total += __shfl_xor_sync(kAllLanes, total, 2);
      inverse[half] = total == 0.0f ? 0.0f : launch.keep.scale / total;  // 0: a row that sees nothing
      lse[half] = total == 0.0f ? -kInfinity : state.top[m][half] + log2f(total);
    }
    if (launch.split.splits > 1) {
      write_partial<Traits>(launch, state.out[m], inverse, lse, split, tile, h, row, lane);
      continue;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = row + half * 8;
      if (lane % 4 == 0 && i < tile.first + tile.count)
        store_global(rows_of<float>(launch.lse, p, tile, h, tile.sequence.first_row) + i * launch.lse.row,
                     lse[half] * kLn2);
    }
    const int first = warp_row + m * 16;
    T* out = rows_of<T>(launch.out, p, tile, h, tile.sequence.first_row);
    write_rows<T, kDim>(out + (tile.first + first) * launch.out.row, launch.out.row, state.out[m], inverse,
                        shared.query, first, tile.count - first, head_dim, lane);
  }
}

// Tiles of 128 rows read keys half as often; tiles of 64 make twice as many blocks and compute less of what
// nobody sees: of 1024 keys, a quarter of them Part A, 4 % against 9 % (of 512: 9 % against 17 %).
bool takes_long_tiles(const SpanAttention& p) {
  const int64_t rows = p.cu_seqlens == nullptr ? p.rows : p.rows / std::max(p.batch, int64_t{1});
  return rows >= 1024 && p.head_dim <= 128 && p.dtype != DType::f32;
}

template <class T, int kHeadDim, int kM>
void launch_forward(const ForwardLaunch& params, cudaStream_t stream) {
  using Traits = ForwardTraits<T, kHeadDim, kM>;
  const SpanAttention& p = params.problem;
  launch_tile_list(p, TilesOf::rows, Traits::kRows, params.list, stream);
  dim3 grid = tile_grid(p, TilesOf::rows, Traits::kRows);
  grid.x *= static_cast<unsigned>(params.split.splits);
  launch(forward_kernel<Traits>, grid, dim3{Traits::kThreads, 1, 1}, sizeof(typename Traits::Shared), stream,
         params);
}

}  // namespace

int64_t span_attention_forward_workspace(const SpanAttention& p) {
  return TileList::size(p, kTileRows) * 2 + SplitKeys(p, nullptr).floats(p);
}

void span_attention_forward(const SpanAttentionForward& op, cudaStream_t stream) {
  const SpanAttention& p = op.problem;
  if (p.batch == 0 && p.cu_seqlens == nullptr) return;
  if (p.rows == 0 || p.heads == 0) return;
  check_attention(p);
  const ForwardLaunch params = {
      .problem = p,
      .out = op.out,
      .lse = op.lse,
      .scale_log2 = static_cast<float>(p.scale * kLog2E),
      .keep = KeepRule(p.dropout),
      .list = {reinterpret_cast<Pack<int, 2>*>(op.workspace)},
      .split = SplitKeys(p, op.workspace),
  };
  visit_attention(p, [&]<class T>(Type<T>, auto dim) {
    if constexpr (sizeof(T) == 2 && dim.value <= 128)
      if (takes_long_tiles(p)) return launch_forward<T, dim.value, 2>(params, stream);
    launch_forward<T, dim.value, 1>(params, stream);
  });
  if (params.split.splits > 1) launch_combine(p, params.split, op.out, op.lse, stream);
}

}  // namespace glm::cuda
