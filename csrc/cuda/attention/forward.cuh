// Attention forward: what its two kernels share, the softmax of a warp's rows and what they leave.
#pragma once

#include <cmath>
#include <limits>

#include "cuda/attention/dropout.cuh"
#include "cuda/attention/split.cuh"

namespace glm::cuda {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr double kLog2E = 1.4426950408889634074;
inline constexpr float kLn2 = 0.69314718055994530942f;

// What of a launch is the same for all blocks.
struct ForwardLaunch {
  SpanAttention problem;
  AttentionRows out, lse;
  float first_scale;  // of scores: 1, or all of it where it is not positive
  float scale;        // > 0: scores become exponents of 2
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

template <int kKeys>
__device__ __forceinline__ void scale_scores(float (&scores)[kKeys / 8][4], float scale) {
  if (scale == 1.0f) return;
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[j][i] *= scale;
}

// -inf where a row does not see the key: row g sees keys [begin, end[0]), row g + 8 keys [begin, end[1]).
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

template <class Traits>
__device__ __forceinline__ void mask_scores(float (&scores)[Traits::kKeys / 8][4], const SpanMask& mask,
                                            int row, int key0, int lane) {
  const int end[2] = {static_cast<int>(mask.row_end(row)), static_cast<int>(mask.row_end(row + 8))};
  mask_scores<Traits>(scores, static_cast<int>(mask.begin), end, key0, lane);
}

// Turns scores, times scale > 0, into probabilities relative to the new maximum. `correction` is what the
// output so far has to be multiplied with. In float32 the product is rounded as the maximum's was: the largest
// probability is 1, and a row that sees one key gives that key's value to the last bit.
template <class Traits>
__device__ __forceinline__ void softmax_step(float (&scores)[Traits::kKeys / 8][4], RowState<Traits>& state,
                                             int m, float scale, float (&correction)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = -kInfinity;
#pragma unroll
    for (int j = 0; j < Traits::kKeys / 8; ++j)
      top = fmaxf(top, fmaxf(scores[j][half * 2], scores[j][half * 2 + 1]));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    top = fmaxf(state.top[m][half], top * scale);
    const float base = top == -kInfinity ? 0.0f : top;  // a row that has seen nothing yet
    correction[half] = exp2_fast(state.top[m][half] - base);
    state.top[m][half] = top;
    float total = state.total[m][half] * correction[half];
#pragma unroll
    for (int j = 0; j < Traits::kKeys / 8; ++j)
#pragma unroll
      for (int i = half * 2; i < half * 2 + 2; ++i) {
        if constexpr (std::is_same_v<typename Traits::T, float>) {
          scores[j][i] = exp2_fast(scores[j][i] * scale - base);
        } else {
          scores[j][i] = exp2_fast(fmaf(scores[j][i], scale, -base));
        }
        total += scores[j][i];
      }
    state.total[m][half] = total;
  }
}

template <class Traits>
__device__ __forceinline__ void rescale_out(RowState<Traits>& state, int m, const float (&correction)[2]) {
#pragma unroll
  for (int d = 0; d < Traits::kHeadDim / 8; ++d)
#pragma unroll
    for (int i = 0; i < 4; ++i) state.out[m][d][i] *= correction[i / 2];
}

// Zeros where dropout takes a probability: `keep` has the bits of these keys, 4 j + i for [j][i].
template <int kKeys>
__device__ __forceinline__ void drop(float (&scores)[kKeys / 8][4], uint32_t keep) {
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if ((keep >> (j * 4 + i) & 1u) == 0) scores[j][i] = 0.0f;
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

// Writes what the state has come to, through the rows of the query that only this warp uses.
template <class Traits>
__device__ __forceinline__ void write_state(const ForwardLaunch& launch, RowState<Traits>& state,
                                            Panel<typename Traits::T, Traits::kRows, Traits::kHeadDim>& query,
                                            int split, const Tile& tile, int h, int warp_row, int lane) {
  using T = typename Traits::T;
  const SpanAttention& p = launch.problem;
#pragma unroll
  for (int m = 0; m < Traits::kM; ++m) {
    const int first = warp_row + m * 16, row = tile.first + first + lane / 4;
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
    T* out = rows_of<T>(launch.out, p, tile, h, tile.sequence.first_row);
    write_rows<T, Traits::kHeadDim>(out + (tile.first + first) * launch.out.row, launch.out.row, state.out[m],
                                    inverse, query, first, tile.count - first, static_cast<int>(p.head_dim),
                                    lane);
  }
}

bool takes_warpgroups(const SpanAttention&);
void launch_forward_hopper(const ForwardLaunch&, cudaStream_t);

}  // namespace glm::cuda
