// out = dropout(softmax(scale Q K^T)) V under GLM's mask, bf16 and f16, for sm_80 and later.
//
// A block takes 64 query rows of one head, a warp 16 of them, and walks the key tiles that they see from
// right to left: S = Q K^T and O += P V by mma.sync, softmax online in base 2 (Dao, "FlashAttention-2",
// 2023), K and V of the next tile on their way by cp.async. What a tile is comes from integers alone
// (core/span_mask.h):
//
//     keys   0 ... begin | begin ............ full_end | ......... seen_end | ...... T
//            never read  | every row sees them         | some rows do       | never read
//
// so that only the tiles that a boundary cuts run the code of the mask. Head dims are padded to 64, 128 or
// 256 with zeros in shared memory.
#include <cmath>
#include <limits>

#include "cuda/attention/tile.cuh"
#include "cuda/dispatch.cuh"
#include "cuda/kernels.h"

namespace glm::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kLog2E = 1.4426950408889634074;
constexpr float kLn2 = 0.69314718055994530942f;

template <class Element, int kPaddedDim>
struct ForwardTraits {
  using T = Element;
  static constexpr int kHeadDim = kPaddedDim;
  static constexpr int kRows = 64;  // 4 warps of 16: one row tile of the mma each
  static constexpr int kKeys = 64;  // those that one Philox counter row serves (core/philox.h)
  static constexpr int kStages = 2;
  static constexpr int kThreads = 128;
  static constexpr int kBlocksPerSm = kHeadDim <= 64 ? 3 : kHeadDim <= 128 ? 2 : 1;
  static constexpr int kUnroll = 2;  // of the loop over the depth of Q K^T
  static_assert(kHeadDim % 64 == 0, "the swizzle takes 8 chunks of 16 bytes");

  struct Shared {
    T query[kRows][kHeadDim];  // and the output on its way out
    T key[kStages][kKeys][kHeadDim];
    T value[kStages][kKeys][kHeadDim];
  };
  static_assert(sizeof(Shared) * kBlocksPerSm <= 163 * 1024, "shared memory of an sm_80");
};

// What of a launch is the same for all blocks.
struct ForwardLaunch {
  SpanAttention problem;
  AttentionRows out, lse;
  float scale_log2;  // scores are kept in base 2
  uint32_t threshold;
  float keep_scale;
  bool dropout;
};

// One warp's 16 rows while it walks the keys. Lane (g, t) = (lane / 4, lane % 4) holds rows g and g + 8.
template <class Traits>
struct RowState {
  float out[Traits::kHeadDim / 8][4] = {};
  float top[2] = {-kInfinity, -kInfinity};  // running maximum
  float total[2] = {};                      // running sum of this lane's columns
};

// -inf where row g (g + 8) does not see the key: it sees [begin, end[0]) ([begin, end[1])).
template <class Traits>
__device__ __forceinline__ void mask_scores(float (&scores)[Traits::kKeys / 8][4], int begin,
                                            const int (&end)[2], int key0, int lane) {
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
__device__ __forceinline__ void softmax_step(float (&scores)[Traits::kKeys / 8][4], RowState<Traits>& state) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = state.top[half];
#pragma unroll
    for (int j = 0; j < Traits::kKeys / 8; ++j)
      top = fmaxf(top, fmaxf(scores[j][half * 2], scores[j][half * 2 + 1]));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    const float base = top == -kInfinity ? 0.0f : top;  // a row that has seen nothing yet
    const float correction = exp2_fast(state.top[half] - base);
    state.top[half] = top;
    state.total[half] *= correction;
#pragma unroll
    for (int j = 0; j < Traits::kKeys / 8; ++j)
#pragma unroll
      for (int i = half * 2; i < half * 2 + 2; ++i) {
        scores[j][i] = exp2_fast(scores[j][i] - base);
        state.total[half] += scores[j][i];
      }
#pragma unroll
    for (int d = 0; d < Traits::kHeadDim / 8; ++d) {
      state.out[d][half * 2] *= correction;
      state.out[d][half * 2 + 1] *= correction;
    }
  }
}

// Zeros the dropped ones. The lane's 4 columns of each 16 take 4 counters; their 4 words serve the four
// sixteens of the tile, the halves of a word rows g and g + 8: every number drawn is used.
template <class Traits>
__device__ __forceinline__ void drop(float (&probability)[Traits::kKeys / 8][4], const ForwardLaunch& launch,
                                     int b, int h, int row, int key0, int lane) {
  static_assert(Traits::kKeys == 64);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const int column = lane % 4 * 2 + c % 2 + c / 2 * 8;  // in a sixteen
    const PhiloxWords words = philox(
        launch.problem.dropout.seed,
        {{static_cast<uint32_t>(key0 / 64 * 16 + column), static_cast<uint32_t>(row / 16 * 8 + row % 8),
          static_cast<uint32_t>(h), static_cast<uint32_t>(b)}});
#pragma unroll
    for (int sixteen = 0; sixteen < 4; ++sixteen) {
      float (&pair)[4] = probability[sixteen * 2 + c / 2];
      if ((words.word[sixteen] & 0xffffu) >= launch.threshold) pair[c % 2] = 0.0f;
      if (words.word[sixteen] >> 16 >= launch.threshold) pair[2 + c % 2] = 0.0f;
    }
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
  const RowTile tile = find_row_tile(p, Traits::kRows);
  if (tile.rows == 0) return;
  const SpanMask& mask = tile.sequence.mask;
  const int h = static_cast<int>(blockIdx.y), head_dim = static_cast<int>(p.head_dim);
  const int64_t kv_head = h / p.group();
  const int row = tile.first + warp * 16 + lane / 4;  // and 8 further: in the sequence

  const auto rows_at = [&](const AttentionRows& x, int64_t head, int64_t first) {
    return static_cast<T*>(x.data) + x.offset(p.cu_seqlens == nullptr ? tile.b : 0, head, first);
  };
  const T* query = rows_at(p.query, h, tile.sequence.first_row);
  const T* key = rows_at(p.key, kv_head, tile.sequence.first_key);
  const T* value = rows_at(p.value, kv_head, tile.sequence.first_key);

  const KeyTiles tiles(mask, tile.first, tile.first + tile.rows, kKeys);
  const int begin = static_cast<int>(mask.begin), end = static_cast<int>(mask.length);
  const int row_end[2] = {static_cast<int>(mask.row_end(row)), static_cast<int>(mask.row_end(row + 8))};
  const auto fetch = [&](int n) {  // keys that nobody sees become zeros: 0 * NaN would leak from padding
    const int stage = (tiles.end - 1 - n) % Traits::kStages;
    copy_rows<Traits::kThreads>(shared.key[stage], key, p.key.row, n * kKeys, begin, end, head_dim);
    copy_rows<Traits::kThreads>(shared.value[stage], value, p.value.row, n * kKeys, begin, end, head_dim);
  };
  if (tiles.begin < tiles.end) {
    copy_rows<Traits::kThreads>(shared.query, query, p.query.row, tile.first, 0, tile.first + tile.rows,
                                head_dim);
    fetch(tiles.end - 1);
    copy_async_commit();
  }

  RowState<Traits> state;
  for (int n = tiles.end - 1; n >= tiles.begin; --n) {
    const int stage = (tiles.end - 1 - n) % Traits::kStages;
    if (n > tiles.begin) fetch(n - 1);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();

    float scores[kKeys / 8][4] = {};
#pragma unroll Traits::kUnroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t a[4];
      load_matrices(a, chunk_at(shared.query, warp * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        uint32_t b[4];
        load_matrices(b,
                      chunk_at(shared.key[stage], j * 16 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
        mma_16x8x16<T>(scores[j * 2], a, {b[0], b[1]});
        mma_16x8x16<T>(scores[j * 2 + 1], a, {b[2], b[3]});
      }
    }
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[j][i] *= launch.scale_log2;
    if (!tiles.full(n)) mask_scores<Traits>(scores, begin, row_end, n * kKeys, lane);
    softmax_step<Traits>(scores, state);
    if (launch.dropout) drop<Traits>(scores, launch, tile.b, h, row, n * kKeys, lane);

#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const uint32_t a[4] = {narrow2<T>(scores[k * 2][0], scores[k * 2][1]),
                             narrow2<T>(scores[k * 2][2], scores[k * 2][3]),
                             narrow2<T>(scores[k * 2 + 1][0], scores[k * 2 + 1][1]),
                             narrow2<T>(scores[k * 2 + 1][2], scores[k * 2 + 1][3])};
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) {
        uint32_t b[4];
        load_matrices<4, true>(b, chunk_at(shared.value[stage], k * 16 + lane % 16, d * 2 + lane / 16));
        mma_16x8x16<T>(state.out[d * 2], a, {b[0], b[1]});
        mma_16x8x16<T>(state.out[d * 2 + 1], a, {b[2], b[3]});
      }
    }
    __syncthreads();  // the stage is free again
  }
  copy_async_wait<0>();

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = state.total[half];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    const float inverse = total == 0.0f ? 0.0f : launch.keep_scale / total;  // 0: a row that sees nothing
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d)
      store_shared(
          reinterpret_cast<uint32_t*>(chunk_at(shared.query, warp * 16 + half * 8 + lane / 4, d)) + lane % 4,
          narrow2<T>(state.out[d][half * 2] * inverse, state.out[d][half * 2 + 1] * inverse));
    const int i = row + half * 8;
    if (lane % 4 == 0 && i < tile.first + tile.rows) {
      const float lse = total == 0.0f ? -kInfinity : (state.top[half] + log2f(total)) * kLn2;
      store_global(
          static_cast<float*>(launch.lse.data) +
              launch.lse.offset(p.cu_seqlens == nullptr ? tile.b : 0, h, tile.sequence.first_row + i),
          lse);
    }
  }
  __syncwarp();
  T* out = rows_at(launch.out, h, tile.sequence.first_row);
  for (int c = lane; c < 16 * kDim / 8; c += kWarp) {
    const int r = warp * 16 + c / (kDim / 8), chunk = c % (kDim / 8);
    if (r < tile.rows && chunk * 8 < head_dim)
      store_global(reinterpret_cast<Pack<T, 8>*>(out + (tile.first + r) * launch.out.row + chunk * 8),
                   load_shared(reinterpret_cast<const Pack<T, 8>*>(chunk_at(shared.query, r, chunk))));
  }
}

template <class T, int kHeadDim>
void launch_forward(const ForwardLaunch& params, cudaStream_t stream) {
  using Traits = ForwardTraits<T, kHeadDim>;
  const SpanAttention& p = params.problem;
  launch(forward_kernel<Traits>, row_tile_grid(p, Traits::kRows), dim3{Traits::kThreads, 1, 1},
         sizeof(typename Traits::Shared), stream, params);
}

}  // namespace

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
      .threshold = p.dropout.threshold(),
      .keep_scale = static_cast<float>(p.dropout.active() ? p.dropout.scale() : 1.0),
      .dropout = p.dropout.active(),
  };
  const auto run = [&]<class T>(Type<T>) {
    if (p.head_dim <= 64) return launch_forward<T, 64>(params, stream);
    if (p.head_dim <= 128) return launch_forward<T, 128>(params, stream);
    launch_forward<T, 256>(params, stream);
  };
  p.dtype == DType::bf16 ? run(Type<bf16>{}) : run(Type<f16>{});
}

}  // namespace glm::cuda
