// The sizes of the attention kernels' tiles and buffers, the same for every instruction set.
#pragma once

#include <algorithm>

#include "cpu/parallel.h"
#include "ops/span_attention.h"

namespace glm::cpu {

// Forward: a work item is some queries of a head (forward_rows); keys pass by in tiles of kForwardKeys.
inline constexpr int64_t kForwardKeys = 128;
// Backward: keys and their gradients stay in L2 kBlockKeys at a time, while the queries pass by in tiles of
// kBackwardRows; a score tile is kBackwardRows x kBackwardKeys.
inline constexpr int64_t kBlockKeys = 512, kBackwardRows = 128, kBackwardKeys = 64;
static_assert(kForwardKeys % 64 == 0 && kBackwardKeys % 64 == 0, "keys that share Philox counters");
// Decoding (a few query rows, many keys): a work item is kDecodeKeys keys of a key head.
inline constexpr int64_t kDecodeKeys = 512, kDecodeRows = 4;
// More vectors than any instruction set's query panel has rows, and a multiple of every vector's lanes.
inline constexpr int64_t kMaxPanelRows = 32, kDepthMultiple = 16;

inline int64_t round_up(int64_t x, int64_t multiple) { return ceil_div(x, multiple) * multiple; }
inline int64_t padded(int64_t depth) { return round_up(depth, kDepthMultiple); }
inline int64_t padded_depth(const SpanAttention& p) { return padded(p.head_dim); }

// The longest sequence's rows and keys.
inline int64_t max_rows(const SpanAttention& p) {
  if (p.cu_seqlens == nullptr) return p.rows;
  int64_t longest = 0;
  for (int64_t b = 0; b < p.batch; ++b) longest = std::max(longest, p.sequence(b).rows);
  return longest;
}

inline int64_t max_keys(const SpanAttention& p) { return p.cu_seqlens == nullptr ? p.keys : max_rows(p); }

inline bool decodes(const SpanAttention& p) {
  return p.cu_seqlens == nullptr && p.rows <= kDecodeRows && !p.dropout.active();
}

// Fewer work items than this may leave threads idle. A number of the problem's, not of the machine's: how
// work is cut depends on sizes alone, so that results are the same bits for every thread count.
inline constexpr int64_t kEnoughItems = 16;

// Queries of a forward work item: each reads and widens all keys that it sees, so as many as leave enough
// items.
inline int64_t forward_rows(const SpanAttention& p) {
  int64_t rows = 512;
  while (rows > 64 && ceil_div(max_rows(p), rows) * p.batch * p.heads < kEnoughItems) rows /= 2;
  return rows;
}

// Too few heads: their keys are cut into chunks, and query gradients of the chunks added in order afterwards.
inline int64_t backward_chunks(const SpanAttention& p) {
  constexpr int64_t kLeastKeys = 128;
  const int64_t heads = std::max<int64_t>(1, p.batch * p.kv_heads);
  const int64_t most = std::max<int64_t>(1, ceil_div(max_keys(p), kLeastKeys));
  return std::clamp<int64_t>(ceil_div(kEnoughItems, heads), 1, most);
}

// Elements (float; double for f64) of one thread's scratch, or of one chunk's query gradients. Pairs of bf16
// (cpu/packed.h) take half the place, or as much in rows of up to 16 elements; backward has keys twice then.
inline int64_t forward_scratch(const SpanAttention& p) {
  const int64_t depth = padded_depth(p);
  return 2 * kForwardKeys * depth + 2 * forward_rows(p) * depth + kForwardKeys * kMaxPanelRows +
         2 * forward_rows(p);
}

// Of one row of one chunk of keys: the sum of values, the maximum and the sum of probabilities.
inline int64_t decode_partial(const SpanAttention& p) { return padded_depth(p) + kDepthMultiple; }

inline int64_t backward_scratch(const SpanAttention& p) {
  const int64_t depth = padded_depth(p);
  return 5 * kBlockKeys * depth + 4 * kBackwardRows * depth + 2 * kBackwardRows * kBackwardKeys +
         kBackwardKeys * kMaxPanelRows + 2 * p.group() * round_up(max_rows(p), kBackwardRows);
}

inline int64_t grad_query_chunk(const SpanAttention& p) {
  return p.group() * round_up(max_rows(p), kBackwardRows) * padded_depth(p);
}

}  // namespace glm::cpu
