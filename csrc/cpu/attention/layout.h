// The sizes of the attention kernels' tiles and buffers, the same for every instruction set.
#pragma once

#include <algorithm>

#include "cpu/parallel.h"
#include "ops/span_attention.h"

namespace glm::cpu {

// Forward: a work item is kForwardRows queries of a head; keys pass by in tiles of kForwardKeys.
inline constexpr int64_t kForwardRows = 256, kForwardKeys = 128;
// Backward: keys and their gradients stay in L2 kBlockKeys at a time, while the queries pass by in tiles of
// kBackwardRows; a score tile is kBackwardRows x kBackwardKeys.
inline constexpr int64_t kBlockKeys = 256, kBackwardRows = 64, kBackwardKeys = 64;
// Decoding (a few query rows, many keys): a work item is this many keys of a key head.
inline constexpr int64_t kDecodeKeys = 1024, kDecodeRows = 4;
// More vectors than any instruction set's query panel has rows, and a multiple of every vector's lanes.
inline constexpr int64_t kMaxPanelRows = 32, kDepthMultiple = 16;

inline int64_t round_up(int64_t x, int64_t multiple) { return ceil_div(x, multiple) * multiple; }
inline int64_t padded_depth(const SpanAttention& p) { return round_up(p.head_dim, kDepthMultiple); }

// The longest sequence's rows and keys.
inline int64_t max_rows(const SpanAttention& p) {
  if (p.cu_seqlens == nullptr) return p.rows;
  int64_t longest = 0;
  for (int64_t b = 0; b < p.batch; ++b) longest = std::max(longest, p.sequence(b).rows);
  return longest;
}

inline int64_t max_keys(const SpanAttention& p) { return p.cu_seqlens == nullptr ? p.keys : max_rows(p); }

inline bool decodes(const SpanAttention& p) {
  return p.cu_seqlens == nullptr && p.rows <= kDecodeRows && !p.dropout.active() && p.keys >= 64;
}

// Fewer heads than this leave threads idle, so their keys are cut into chunks whose query gradients are
// summed in order afterwards. A function of the sizes alone: results are the same for any thread count.
inline int64_t backward_chunks(const SpanAttention& p) {
  constexpr int64_t kEnoughItems = 16;
  const int64_t heads = std::max<int64_t>(1, p.batch * p.kv_heads);
  const int64_t blocks = std::max<int64_t>(1, ceil_div(max_keys(p), kBlockKeys));
  return std::clamp<int64_t>(ceil_div(kEnoughItems, heads), 1, blocks);
}

// Elements (float; double for f64) of one thread's scratch, or of one chunk's query gradients.
inline int64_t forward_scratch(const SpanAttention& p) {
  const int64_t depth = padded_depth(p);
  return 2 * kForwardKeys * depth + 2 * kForwardRows * depth + kForwardKeys * kMaxPanelRows +
         2 * kForwardRows;
}

inline int64_t decode_partial(const SpanAttention& p) {
  return p.group() * p.rows * (padded_depth(p) + 2);
}

inline int64_t backward_scratch(const SpanAttention& p) {
  const int64_t depth = padded_depth(p);
  return 4 * kBlockKeys * depth + 4 * kBackwardRows * depth + 2 * kBackwardRows * kBackwardKeys +
         2 * kBackwardRows + 2 * p.group() * round_up(max_rows(p), kMaxPanelRows);
}

inline int64_t grad_query_chunk(const SpanAttention& p) {
  return p.group() * round_up(max_rows(p), kBackwardRows) * padded_depth(p);
}

}  // namespace glm::cpu
