// The cross-entropy of logits = hidden weight^T, a row n of loss weight w_n and label smoothing e giving
//   ce_n = lse_n - (1 - e) logit[n, target_n] - e mean_v logit[n, v]
// and its gradients, in one pass: a chunk of rows meets the whole vocabulary, and its logits become the loss
// and, in place, their own gradient before the next chunk is begun. No [N, V] exists. (Label smoothing:
// Szegedy et al., arXiv 1512.00567, section 7.) All arrays are contiguous; "compute" is float, double for
// f64. A target outside of the vocabulary is the caller's to find on a CPU; on a GPU it makes the loss NaN.
#pragma once

#include <algorithm>
#include <bit>

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
  void* loss;  // compute: [N] w_n ce_n, or one number: their sum, or that by sum(w) (by 1 if that is 0)
  void* grad_hidden;  // [N, E] compute, of the sum or the mean; null: not wanted
  void* grad_weight;  // [V, E] likewise
  void* workspace;  // LinearCrossEntropyPlan::workspace() compute numbers; on a GPU LinearCrossEntropyGpuPlan
  int threads;
};

// How the work is cut, from sizes alone. Long chunks are fast, for each of them reads the weight matrix and
// adds to its gradient; but its scratch is all that is ever kept of the N x V: at most a quarter of that,
// which is an eighth of logits and their gradient, and at most 32 MB (5 MB, or 96 rows, are never too much).
struct LinearCrossEntropyPlan {
  static constexpr int64_t kUnit = 96;  // rows, and columns of hidden: whole tiles of every instruction set
  static constexpr int64_t kMaxRows = 384;

  int64_t vocab, width;
  int64_t padded_width;  // E in whole tiles
  int64_t slice;   // words of one part of the vocabulary. Threads take the parts: each sums its own share of
  int64_t slices;  // the softmax and of the gradient of hidden, and the shares are added in order
  int64_t padded_rows;  // rows of a chunk, or of all N, with what completes their tiles

  LinearCrossEntropyPlan(int64_t rows, int64_t width, int64_t vocab) : vocab(vocab), width(width) {
    padded_width = round_up(width, kUnit);
    const auto wanted =
        std::bit_floor(static_cast<uint64_t>(std::clamp<int64_t>(vocab / (4 * width), 4, 32)));
    slice = round_up(vocab / static_cast<int64_t>(wanted) + 1, kUnit);
    slices = (vocab + slice - 1) / slice;
    constexpr int64_t kSmall = 5 << 18, kLarge = 8 << 20;  // numbers
    const int64_t fitting = std::clamp(rows * vocab / 4, kSmall, kLarge) / row_size();
    padded_rows = std::min({std::max(fitting / kUnit * kUnit, kUnit), kMaxRows,
                            rows < kUnit ? round_up(rows + 11, 32) : round_up(rows, kUnit)});
  }

  // Scratch of a row, in numbers of the compute type: logits, the row of hidden as it is and in panels, and
  // for each slice the gradient of hidden, and three statistics.
  int64_t row_size() const { return vocab + (2 + slices) * padded_width + 3 * slices; }
  int64_t workspace() const { return padded_rows * row_size(); }

  static int64_t round_up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }
};

// On a GPU the rows that count are gathered first, and a chunk of them is a product of whole tiles. Each
// chunk adds to the gradient of the weight, V E floats read and written, so a chunk is a quarter of all rows,
// but 1024 at most, which make enough work for every SM. Offsets are in bytes.
struct LinearCrossEntropyGpuPlan {
  static constexpr int64_t kTile = 128;
  static constexpr int64_t kMaxRows = 1024;
  static constexpr int64_t kSlices =
      4;  // of the vocabulary, in the gradient of hidden: few tiles, a long sum

  int64_t chunk_rows;
  int64_t line;         // V in whole accesses
  int64_t sums;         // float [3]: the factors of losses, of grad_z and of what is made of it
  int64_t count;        // int32: rows that count
  int64_t places;       // int32 [N]: where they stand
  int64_t losses;       // float [N]: theirs
  int64_t hidden;       // T [N, E]: theirs
  int64_t logits;       // float [chunk_rows, line]
  int64_t grad_logits;  // T [chunk_rows, line]; logits themselves in float32
  int64_t grad_hidden;  // float [kSlices, chunk_rows, E]
  int64_t size;

  LinearCrossEntropyGpuPlan(int64_t rows, int64_t width, int64_t vocab, int64_t element_size)
      : chunk_rows(std::clamp(round_up(rows / 4, kTile), kTile, kMaxRows)),
        line(round_up(vocab, 8)),
        sums(0),
        count(256),
        places(512),
        losses(places + round_up(rows * 4, 256)),
        hidden(losses + round_up(rows * 4, 256)),
        logits(hidden + round_up(rows * width * element_size, 256)),
        grad_logits(logits + (element_size == 4 ? 0 : round_up(chunk_rows * line * 4, 256))),
        grad_hidden(grad_logits + round_up(chunk_rows * line * element_size, 256)),
        size(grad_hidden + round_up(kSlices * chunk_rows * width * 4, 256)) {}

  static int64_t round_up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }
};

}  // namespace glm
