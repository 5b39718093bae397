// Gradients of attention: what the two kernels share (attention/grad_query.cu, attention/grad_key.cu).
//
//   P = exp2(scale S - lse),  dP = dO V^T,  dS = P (dP - delta + dlse),  delta = rowsum(dO out)
//   dQ = scale dS K,  dK = scale dS^T Q,  dV = P^T dO                                (docs/math.md)
//
// Either kernel keeps 64 rows of two tensors and lets the rows of two others walk by, and either recomputes S
// and dP in the layout in which P and dS are the left operand of what follows: they never leave registers.
// No block waits for another and nothing is added twice: the same bits on every run.
#pragma once

#include <limits>

#include "cuda/attention/dropout.cuh"
#include "cuda/attention/product.cuh"

namespace glm::cuda {

// Lse is in base 2, and +infinity where a row sees nothing: its probabilities are zeros. Delta and dlse are
// not summed, since dP - delta is zero to the last bit where a row sees one key.
struct alignas(16) RowStatistic {
  float lse, delta, grad_lse, unused;
};

// Of rows in tiles of 64 that are full, or filled with rows that see nothing.
struct RowStatistics {
  RowStatistic* data;
  int64_t head;  // places of one head (of one sequence, when dense)
  int64_t size;

  RowStatistics(const SpanAttention& p, float* workspace)
      : data(reinterpret_cast<RowStatistic*>(workspace)),
        head((p.cu_seqlens == nullptr ? (p.rows + 63) / 64 : TileList::size(p, kTileRows)) * 64),
        size(head * p.heads * (p.cu_seqlens == nullptr ? p.batch : 1)) {}

  // Of row 0 of a sequence. Packed sequence b begins at or after 64 (first_row / 64 + b): none overlap.
  __device__ __forceinline__ RowStatistic* of(const SpanAttention& p, const Tile& tile, int64_t h) const {
    if (p.cu_seqlens == nullptr) return data + (tile.b * p.heads + h) * head;
    return data + h * head + (tile.sequence.first_row / 64 + tile.b) * 64;
  }
};

struct BackwardLaunch {
  SpanAttentionBackward op;
  RowStatistics statistics;
  float scale, scale_log2;
  KeepRule keep;
  TileList rows, keys;
};

template <class Element, int kPaddedDim>
struct BackwardTraits {
  using T = Element;
  static constexpr int kHeadDim = kPaddedDim;
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(T));
  static constexpr int kTile = 64;  // rows that stay: 4 warps of 16
  static constexpr int kWalk = kRowBytes <= 128 ? 64 : kRowBytes <= 512 ? 32 : 16;  // rows that walk by
  static constexpr int kStages = kRowBytes <= 512 ? 2 : 1;
  static constexpr int kThreads = 128;

  struct Tiles {
    Panel<T, kTile, kHeadDim> fixed[2];
    Panel<T, kWalk, kHeadDim> walking[kStages][2];
  };
};

void launch_grad_query(const BackwardLaunch&, cudaStream_t);
void launch_grad_key_and_value(const BackwardLaunch&, cudaStream_t);

}  // namespace glm::cuda
