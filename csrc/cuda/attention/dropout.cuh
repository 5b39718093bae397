// The bits of dropout for tiles of scores, drawn with no number wasted (core/philox.h).
#pragma once

#include "cuda/ptx.cuh"
#include "ops/span_attention.h"

namespace glm::cuda {

// What a kernel needs to know of dropout.
struct KeepRule {
  uint64_t seed;
  uint32_t threshold;
  float scale;
  bool active;

  explicit KeepRule(const Dropout& dropout)
      : seed(dropout.seed),
        threshold(dropout.threshold()),
        scale(static_cast<float>(dropout.active() ? dropout.scale() : 1.0)),
        active(dropout.active()) {}

  // The eight numbers of a counter: bit 2 w + half says whether that half of word w keeps its element.
  __device__ __forceinline__ uint32_t draw(int b, int h, int row_counter, int key_counter) const {
    const PhiloxWords words =
        philox(seed, {{static_cast<uint32_t>(key_counter), static_cast<uint32_t>(row_counter),
                       static_cast<uint32_t>(h), static_cast<uint32_t>(b)}});
    uint32_t bits = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      bits |= ((words.word[w] & 0xffffu) < threshold ? 1u : 0u) << (w * 2);
      bits |= (words.word[w] >> 16 < threshold ? 1u : 0u) << (w * 2 + 1);
    }
    return bits;
  }
};

// For rows of queries: a lane's bits of its warp's 16 rows and 64 keys from key0, bit 4 j + i for element
// [j][i] of the scores. Its 4 columns of each sixteen take 4 counters; their 4 words serve the 4 sixteens,
// the halves of a word rows g and g + 8.
__device__ __forceinline__ uint32_t draw_rows(const KeepRule& rule, int b, int h, int row, int key0,
                                              int lane) {
  uint32_t keep = 0;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const uint32_t bits =
        rule.draw(b, h, row / 16 * 8 + row % 8, key0 / 64 * 16 + lane % 4 * 2 + c % 2 + c / 2 * 8);
#pragma unroll
    for (int sixteen = 0; sixteen < 4; ++sixteen) {
      const int at = (sixteen * 2 + c / 2) * 4 + c % 2;
      keep |= (bits >> (sixteen * 2) & 1u) << at | (bits >> (sixteen * 2 + 1) & 1u) << (at + 2);
    }
  }
  return keep;
}

// For rows of keys, where a warp has 16 keys and needs one word of each counter, the four warps of 64 keys
// draw together: byte [c][t][s][odd] holds the bits of the counter of keys c of each sixteen and of queries
// 2t + odd (and 8 further) of sixteen s.
template <int kQueries>
struct KeepBytes {
  static constexpr int kPerLane = kQueries / 8;  // bytes that a lane reads for one of its two keys
  alignas(8) uint8_t byte[16][4][kPerLane];
};

template <int kQueries>
__device__ __forceinline__ void draw_keys(KeepBytes<kQueries>& keep, const KeepRule& rule, int b, int h,
                                          int query0, int key0, int thread) {
  constexpr int kThreads = 4 * kWarp, kCounters = 16 * kQueries / 2;
  constexpr int kEach = kCounters / kThreads < 2 ? 2 : kCounters / kThreads;
  static_assert(kThreads * kEach >= kCounters && KeepBytes<kQueries>::kPerLane % kEach == 0);
  const int first = thread * kEach;
  if (first >= kCounters) return;
  const int c = first / (kQueries / 2), t = first / KeepBytes<kQueries>::kPerLane % 4,
            at = first % KeepBytes<kQueries>::kPerLane;
  Pack<uint8_t, kEach> bytes;
#pragma unroll
  for (int k = 0; k < kEach; ++k)
    bytes.value[k] = static_cast<uint8_t>(
        rule.draw(b, h, (query0 / 16 + (at + k) / 2) * 8 + t * 2 + (at + k) % 2, key0 / 64 * 16 + c));
  store_shared(reinterpret_cast<Pack<uint8_t, kEach>*>(&keep.byte[c][t][at]), bytes);
}

// A lane's bits of its warp's 16 keys and kQueries queries: for key g + 8 half, bit 2 (2s + odd) + high for
// query 16 s + 8 high + 2t + odd.
template <int kQueries>
__device__ __forceinline__ void take_keys(uint32_t (&bits)[2], const KeepBytes<kQueries>& keep, int warp,
                                          int lane) {
  using Bytes = Pack<uint8_t, KeepBytes<kQueries>::kPerLane>;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Bytes bytes = load_shared(reinterpret_cast<const Bytes*>(keep.byte[lane / 4 + half * 8][lane % 4]));
    bits[half] = 0;
#pragma unroll
    for (int k = 0; k < KeepBytes<kQueries>::kPerLane; ++k)
      bits[half] |= (static_cast<uint32_t>(bytes.value[k]) >> (warp * 2) & 3u) << (k * 2);
  }
}

}  // namespace glm::cuda
