// Few rows and many keys, as in decoding, make fewer blocks than a GPU has SMs: the keys of a row tile are
// then split over blocks, each of which leaves a partial result, and a second kernel adds them in order
// ("Flash-Decoding", Dao et al., 2023). How many splits is a matter of sizes alone: the same bits on every
// card.
#pragma once

#include <algorithm>

#include "cuda/attention/tile.cuh"

namespace glm::cuda {

struct SplitKeys {
  int splits;    // 1: none
  int64_t rows;  // B H S
  float* out;    // [splits, rows, D], normalised by the split's own sum
  float* lse;    // [rows, splits], base 2

  static constexpr int64_t kLeastKeys = 256;  // of a split: below, the second kernel costs more than it saves
  static constexpr int64_t kWantedBlocks = 512;  // 108 to 148 SMs hold up to 3 blocks each
  static constexpr int64_t kMostSplits = kWarp;  // a lane each in the second kernel

  SplitKeys(const SpanAttention& p, float* workspace) : splits(1), rows(p.batch * p.heads * p.rows) {
    const int64_t blocks = p.batch * p.heads;
    if (p.cu_seqlens == nullptr && 0 < p.rows && p.rows <= kTileRows && blocks > 0)
      splits = static_cast<int>(
          std::max(int64_t{1}, std::min({p.keys / kLeastKeys, kWantedBlocks / blocks, kMostSplits})));
    out = workspace;
    lse = workspace + splits * rows * p.head_dim;
  }
  int64_t floats(const SpanAttention& p) const { return splits == 1 ? 0 : splits * rows * (p.head_dim + 1); }

  __device__ __forceinline__ float* out_of(const SpanAttention& p, int split, int64_t row) const {
    return out + (split * rows + row) * p.head_dim;
  }
  __device__ __forceinline__ float* lse_of(int split, int64_t row) const {
    return lse + row * splits + split;
  }
};

void launch_combine(const SpanAttention&, const SplitKeys&, const AttentionRows& out,
                    const AttentionRows& lse, cudaStream_t);

}  // namespace glm::cuda
