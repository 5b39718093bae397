// Gradients of attention: what the kernels share (attention/grad_query.cu, attention/grad_key.cu).
//
//   P = exp2(scale S - lse),  dP = dO V^T,  dS = P (dP - delta + dlse),  delta = rowsum(dO out)
//   dQ = scale dS K,  dK = scale dS^T Q,  dV = P^T dO                                (docs/math.md)
//
// Either kernel keeps 64 rows of two tensors and lets the rows of two others walk by, and either recomputes S
// and dP in the layout in which P and dS are the left operand of what follows: they never leave registers.
// No block waits for another and nothing is added twice: the same bits on every run.
//
// Or the kernel for dK and dV passes dS through shared memory and adds its part of dQ to sums in global memory:
// S and dP are computed once, five products instead of seven. In any order: all tiles of keys at once. In order:
// a tile after the other, of each head one or two at a time, which have sums of their own.
#pragma once

#include <limits>

#include "cuda/attention/dropout.cuh"
#include "cuda/attention/product.cuh"
#include "cuda/attention/warpgroup_product.cuh"
#include "cuda/device.h"

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
  __device__ __forceinline__ int64_t place(const SpanAttention& p, const Tile& tile, int64_t h) const {
    if (p.cu_seqlens == nullptr) return (tile.b * p.heads + h) * head;
    return h * head + (tile.sequence.first_row / 64 + tile.b) * 64;
  }

  __device__ __forceinline__ RowStatistic* of(const SpanAttention& p, const Tile& tile, int64_t h) const {
    return data + place(p, tile, h);
  }
};

// Whether one kernel computes all gradients, with the sums of dQ in shared memory (attention/grad_short.cu).
bool takes_short(const SpanAttention&, GradQuery);

// Sums of dQ that blocks of keys add to: of 16 rows and 64 columns [8][4][lane], as a warp holds them
// (add_row_products), so that the 32 lanes of an access are neighbours.
struct QuerySums {
  float* data;
  int dim;     // columns, padded
  int copies;  // 0: dQ has a kernel of its own
  int64_t rows;

  // In order, as many tiles of a head are under way as it has sums: two blocks for an SM of 128, at least.
  static constexpr int64_t kBlocks = 256;

  static int copies_for(const SpanAttention& p, GradQuery way) {
    if (way == GradQuery::own_kernel || p.dtype == DType::f32 || p.head_dim > 128) return 0;
    if (takes_short(p, way)) return 0;
    if (way == GradQuery::sums_in_any_order) return 1;
    const int64_t heads = p.batch * p.kv_heads, tiles = (p.keys + 63) / 64;
    if (p.cu_seqlens != nullptr || heads == 0) return 0;  // a list has tiles of a sequence side by side
    const int64_t wanted = SpanMask::min(tiles, (kBlocks + heads - 1) / heads);
    return wanted <= 2 ? static_cast<int>(wanted) : 0;  // more zeros and sums would cost what they save
  }

  QuerySums(const SpanAttention& p, GradQuery way, const RowStatistics& statistics, float* workspace)
      : data(workspace),
        dim(p.head_dim <= 64 ? 64 : 128),
        copies(copies_for(p, way)),
        rows(statistics.size) {}

  int64_t size() const { return copies * rows * dim; }

  // What this lane has of rows [place, place + 16) (RowStatistics::place) and of columns [column, column + 64).
  __device__ __forceinline__ float* of(int copy, int64_t place, int column, int lane) const {
    return data + (copy * rows + place) * dim + column * 16 + lane;
  }
};

struct BackwardLaunch {
  SpanAttentionBackward op;
  RowStatistics statistics;
  QuerySums query_sums;
  float scale, scale_log2;
  KeepRule keep;
  TileList rows, keys;
};

// kWalkRows: rows that walk by. kFixedRows: those that stay, 16 a warp.
template <class Element, int kPaddedDim, Products kWay, int kWalkRows, int kFixedRows = 64>
struct BackwardTraits {
  using T = Element;
  static constexpr int kHeadDim = kPaddedDim;
  static constexpr Products kProducts = kWay;
  static constexpr bool kWarpgroup = kProducts == Products::warpgroup;
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(T));
  static constexpr int kTile = kFixedRows;
  static constexpr int kWalk = kWalkRows;
  static constexpr int kStages = kRowBytes <= 512 ? 2 : 1;
  static constexpr int kThreads = kTile * 2;

  struct Tiles {
    Panel<T, kTile, kHeadDim> fixed[2];
    Panel<T, kWalk, kHeadDim> walking[kStages][2];
  };
};

// Of what a warp multiplies; 1024 bytes a row are too much for a small card.
template <class T, int kPaddedDim, Card kCard>
inline constexpr int kWarpWalk = kPaddedDim * sizeof(T) <= 128                           ? 64
                                 : kPaddedDim * sizeof(T) <= 512 && kCard != Card::small ? 32
                                                                                         : 16;

// The walk of a block over `steps` tiles: start(step) begins to copy a tile, prepare(step) writes what else it
// needs, then, behind a barrier, work(step) finds it. The copy of the next tile is on its way meanwhile, where
// there are two stages. The copy of tile 0 may have been started and committed before, with what stays.
template <class Traits, class Start, class Prepare, class Work>
__device__ __forceinline__ void walk(int steps, const Start& start, const Prepare& prepare,
                                     const Work& work) {
  for (int step = 0; step < steps; ++step) {
    if constexpr (Traits::kStages == 1) {
      if (step > 0) {
        __syncthreads();  // the stage is free again
        start(step);
        copy_async_commit();
      }
    }
    prepare(step);
    copy_async_wait<0>();
    if constexpr (Traits::kWarpgroup) wgmma_publish();
    __syncthreads();  // tile `step` is there, and nobody reads the one before it any more
    if (Traits::kStages > 1 && step + 1 < steps) start(step + 1);
    copy_async_commit();
    work(step);
  }
  copy_async_wait<0>();
}

template <Products kProducts>
using By = std::integral_constant<Products, kProducts>;

// Calls function(Type<T>{}, dim, By<products>{}, card) with what the kernels for this problem and card are
// compiled for.
template <class Function>
void visit_backward(const SpanAttention& p, Function&& function) {
  visit_attention(p, [&]<class T>(Type<T> type, auto dim) {
    if constexpr (sizeof(T) == 2 && dim.value <= 128)
      if (has_wgmma()) return function(type, dim, By<Products::warpgroup>{}, On<Card::hopper>{});
    visit_card([&](auto card) {
      if constexpr (dim.value * sizeof(T) > 512 && card.value == Card::small)
        fail("query: expected a head dim of at most 128 for the gradients of float32, got ", p.head_dim,
             ": a block of this GPU has 99 KB of shared memory; use bfloat16 or float16, or "
             "glm_ext.ops.reference");
      else {
        if constexpr (std::is_same_v<T, float>)
          if (uses_ffma()) return function(type, dim, By<Products::ffma>{}, card);
        function(type, dim, By<Products::mma>{}, card);
      }
    });
  });
}

void launch_grad_query(const BackwardLaunch&, cudaStream_t);
// Also adds to query_sums, where there are any.
void launch_grad_key_and_value(const BackwardLaunch&, cudaStream_t);
void launch_grad_short(const BackwardLaunch&, cudaStream_t);

}  // namespace glm::cuda
