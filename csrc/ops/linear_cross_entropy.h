// The cross-entropy of logits = hidden weight^T, a row n of loss weight w_n and label smoothing e giving
//   ce_n = lse_n - (1 - e) logit[n, target_n] - e mean_v logit[n, v]
// and its gradients, in one pass: a chunk of rows meets the whole vocabulary, and its logits become the loss and, in
// place, their own gradient before the next chunk is begun. No [N, V] exists. (Label smoothing: Szegedy et al., arXiv
// 1512.00567, section 7.) All arrays are contiguous; "compute" is float, double for f64.
#pragma once

#include <algorithm>

#include "core/dtype.h"

namespace glm {

enum class Reduction : int { none, sum, mean };

struct LinearCrossEntropy {
  DType dtype;
  int64_t rows, width, vocab;  // N, E, V
  const void* hidden;          // [N, E]
  const void* weight;          // [V, E]
  const int64_t* targets;      // [N]; only rows of weight other than 0 are read, here and in hidden
  const void* row_weight;      // [N] compute
  double label_smoothing;
  Reduction reduction;
  void* loss;         // compute: [N] w_n ce_n, or one number: their sum, or that by sum(w) (by 1 if that is 0)
  void* grad_hidden;  // [N, E] compute, of the sum or the mean; null: not wanted
  void* grad_weight;  // [V, E] likewise
  void* workspace;    // linear_cross_entropy_workspace compute numbers
  int threads;
};

inline constexpr int64_t kLinearCrossEntropyMaxRows = 480;

// Rows of a chunk. Each chunk reads the weight matrix and adds to its gradient, so long chunks are fast; but the
// chunk's logits are all that is kept of the N x V: at most a fifth of them, and 32 MB, and never cut below 4 MB.
inline int64_t linear_cross_entropy_chunk_rows(int64_t rows, int64_t vocab) {
  constexpr int64_t kSmall = 1 << 20, kLarge = 8 << 20;  // numbers
  constexpr int64_t kRowUnit = 48;                       // whole tiles of every instruction set
  constexpr int64_t kMaxRows = kLinearCrossEntropyMaxRows;
  const int64_t budget = std::clamp(rows * vocab / 5, kSmall, kLarge);
  const int64_t fitting = std::clamp(budget / std::max<int64_t>(vocab, 1), kRowUnit, kMaxRows);
  return std::min(fitting / kRowUnit * kRowUnit, rows);
}

// Distance between rows of a chunk's logits: whole vectors, and never a power of two, which would send a column of
// the chunk to one set of the cache.
inline int64_t linear_cross_entropy_stride(int64_t vocab) { return (vocab + 15) / 16 * 16 + 16; }

// A chunk's logits and its rows of hidden.
inline int64_t linear_cross_entropy_workspace(int64_t rows, int64_t width, int64_t vocab) {
  return linear_cross_entropy_chunk_rows(rows, vocab) * (linear_cross_entropy_stride(vocab) + width);
}

}  // namespace glm
