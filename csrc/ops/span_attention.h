// out = dropout(softmax(scale * Q K^T)) V under GLM's mask (core/span_mask.h), one head at a time; heads h of
// a group of heads / kv_heads read one key and value head. Du et al., "GLM", 2022, section 2.1; the tiling is
// that of Dao, "FlashAttention-2", 2023: no S x T matrix exists, backward computes it again from lse.
//
// A batch is dense (B sequences of S queries and T keys) or packed (B sequences end to end in N rows).
#pragma once

#include "core/check.h"
#include "core/dtype.h"
#include "core/philox.h"
#include "core/span_mask.h"

namespace glm {

// A tensor of rows of D elements, or of one: strides count elements, the last is 1. Packed: batch is 0.
struct AttentionRows {
  void* data;
  int64_t batch, head, row;

  GLM_HD int64_t offset(int64_t b, int64_t h, int64_t i) const { return b * batch + h * head + i * row; }
};

// Where sequence b lies in the tensors, and what its rows see.
struct SpanSequence {
  int64_t first_row;   // in query, out and lse
  int64_t first_key;   // in key and value
  int64_t rows, keys;  // S, T of this sequence
  SpanMask mask;
};

struct SpanAttention {
  DType dtype;
  int64_t batch, heads, kv_heads, head_dim;  // B, H, Hkv, D
  int64_t rows, keys;                        // S, T; N, N when packed
  const int64_t* prefix_len;                 // [B]
  const int64_t* seq_len;                    // [B], or null: T
  const int64_t* start;                      // [B], or null: 0
  const int64_t* cu_seqlens;                 // [B + 1] when packed, else null
  AttentionRows query;                       // [B, H, S, D] or [N, H, D]
  AttentionRows key, value;                  // [B, Hkv, T, D] or [N, Hkv, D]
  double scale;
  Dropout dropout;
  int threads;

  GLM_HD int64_t group() const { return heads / kv_heads; }

  // On a GPU nobody has looked at the values before: what they would reach out of range must not be touched.
  GLM_HD static int64_t clamp(int64_t value, int64_t most) {
    return SpanMask::max(0, SpanMask::min(value, most));
  }

  // Where packed sequence b begins; B: where the last one ends.
  GLM_HD int64_t bound(int64_t b) const { return clamp(cu_seqlens[b], rows); }

  GLM_HD SpanSequence sequence(int64_t b) const {
    if (cu_seqlens != nullptr) {
      const int64_t first = bound(b), length = SpanMask::max(0, bound(b + 1) - first);
      return {first, first, length, length, {prefix_len[b], length, 0, 0}};
    }
    const int64_t length = seq_len == nullptr ? keys : clamp(seq_len[b], keys);
    const int64_t row_offset = rows < keys ? length - rows : 0;  // decoding: the rows are the last ones
    return {
        0, 0, rows, keys, {prefix_len[b], length, start == nullptr ? 0 : clamp(start[b], keys), row_offset}};
  }
};

struct SpanAttentionForward {
  SpanAttention problem;
  AttentionRows out;  // as query
  AttentionRows lse;  // [B, H, S] or [H, N], float; double for f64
  float* workspace;   // of a GPU's kernels (cuda/kernels.h); null on a CPU
};

// How a GPU comes to grad_query: by a kernel of its own, or, where there is one for it, as sums to which the
// kernel for grad_key adds: in the same order on every run, or in any.
enum class GradQuery : int { own_kernel, sums_in_order, sums_in_any_order };

struct SpanAttentionBackward {
  SpanAttention problem;
  AttentionRows out, lse;
  AttentionRows grad_out;              // as out
  AttentionRows grad_lse;              // as lse; data null: none came
  AttentionRows grad_query;            // as query
  AttentionRows grad_key, grad_value;  // as key, value
  GradQuery way;                       // of a GPU's kernels
  float* workspace;                    // of a GPU's kernels (cuda/kernels.h); null on a CPU
};

}  // namespace glm
