// dropout + add + layer norm on a GPU: each tensor crosses the memory bus once each way.
//
//   h = residual + dropout(x),  xhat = (h - mean(h)) rstd(h),  normed = xhat weight + bias
//   g = grad_normed weight,     grad_h = rstd (g - mean(g) - xhat mean(g xhat)) + grad_new_residual
//   grad_residual = grad_h,     grad_x = dropout'(grad_h)
//   grad_weight = sum_n grad_normed xhat,    grad_bias = sum_n grad_normed        (docs/math.md)
//
// Forward: a team of warps holds a row in registers. Backward: a block takes one of the fixed groups of rows,
// its teams take rows in turn and keep the sums over rows of their columns in registers; the teams' sums are
// added in order, and a second kernel adds the groups in order. Same bits on every run.
#include <cmath>

#include "cuda/dispatch.cuh"
#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "cuda/sum_parts.cuh"

namespace glm::cuda {
namespace {

struct ForwardTraits {
  static constexpr int kTiles = 4;  // a warp holds 1024 columns, 32 floats a lane
  static constexpr int kAhead = 2;  // tiles in flight
  static constexpr int kMaxThreads = kMaxTeamWarps * kWarp;
  static constexpr int kBlocksPerSm = 1;  // of kMaxThreads: at most 128 registers a thread

  struct Shared {
    float slots[2][kMaxTeamWarps][1];
  };
};

struct BackwardTraits {
  static constexpr int kTiles = 2;  // both sums: 32 floats a lane
  static constexpr int kMaxThreads = kMaxTeamWarps * kWarp;
  static constexpr int kBlocksPerSm = 1;  // of kMaxThreads: at most 128 registers a thread
  static constexpr int kSums = 2 * kTiles * kLaneColumns;

  struct Shared {
    float slots[2][kMaxTeamWarps][2];
    float sums[kSums][kBlockWarps * kWarp];  // by thread: no two lanes meet in a bank
  };
};

// ---- forward
// -------------------------------------------------------------------------------------------------

template <class T, bool kFast>
__global__ void __launch_bounds__(ForwardTraits::kMaxThreads, ForwardTraits::kBlocksPerSm)
    forward_kernel(DropoutAddLayerNormForward p, RowDropout dropout, TeamShape shape) {
  constexpr int kPer = kLaneRun<T, kFast>;
  constexpr int kTiles = ForwardTraits::kTiles;
  auto& shared = shared_memory<ForwardTraits::Shared>();
  const Team team(shape);
  const int64_t n = static_cast<int64_t>(blockIdx.x) * shape.teams + team.index;
  const int width = n < p.rows ? static_cast<int>(p.width)
                               : 0;  // a team without a row has no columns, but meets the others
  const T* x = static_cast<const T*>(p.x) + n * p.width;
  const T* residual = static_cast<const T*>(p.residual) + n * p.width;
  T* new_residual = static_cast<T*>(p.new_residual) + n * p.width;
  T* normed = static_cast<T*>(p.normed) + n * p.width;

  RawTile<T, kPer> held[kFast ? kTiles : 1];  // h, rounded
  const auto reload = [&](int i, int first, float (&h)[kLaneColumns]) {
    if constexpr (!kFast) held[i].load(new_residual, first, width, team.lane);
    held[i].widen_to(h);
  };

  constexpr int kAhead = kFast ? ForwardTraits::kAhead : 1;
  RawTile<T, kPer> raw[2][kAhead];
  const auto load = [&](int a, int first) {
    raw[0][a].load(residual, first, width, team.lane);
    raw[1][a].load(x, first, width, team.lane);
  };
  float sum[1] = {};
  team.for_loaded_tiles<kTiles, kFast, kAhead>(width, load, [&](int i, int a, int first) {
    float h[kLaneColumns], in[kLaneColumns];
    raw[0][a].widen_to(h);
    raw[1][a].widen_to(in);
    if (dropout.active) {
      const uint32_t bits = keep_bits<kPer>(dropout, n, first, team.lane);
#pragma unroll
      for (int k = 0; k < kLaneColumns; ++k) h[k] += dropped(in[k], bits, k, dropout.scale);
    } else {
#pragma unroll
      for (int k = 0; k < kLaneColumns; ++k) h[k] += in[k];
    }
    held[i].narrow_from(h);
    held[i].store(new_residual, first, width, team.lane);
    held[i].widen_to(h);  // its mean is that of the stream
#pragma unroll
    for (int k = 0; k < kLaneColumns; ++k) sum[0] += h[k];
  });
  team.sum(sum, shared.slots[0]);
  const float mean = sum[0] / static_cast<float>(p.width);

  float squares[1] = {};
  team.for_tiles<kTiles, kFast>(width, [&](int i, int first) {
    float h[kLaneColumns];
    reload(i, first, h);
#pragma unroll
    for (int k = 0; k < kLaneColumns; ++k) {
      // Runs are in the row or out of it whole.
      const float centred =
          first + tile_column<kPer>(k / kPer * kPer, team.lane) < width ? h[k] - mean : 0.0f;
      squares[0] = fmaf(centred, centred, squares[0]);
    }
  });
  team.sum(squares, shared.slots[1]);
  const float rstd = 1.0f / sqrtf(squares[0] / static_cast<float>(p.width) + static_cast<float>(p.eps));

  team.for_tiles<kTiles, kFast>(width, [&](int i, int first) {
    float h[kLaneColumns], weight[kLaneColumns], bias[kLaneColumns];
    reload(i, first, h);
    load_tile<kPer>(weight, static_cast<const T*>(p.weight), first, width, team.lane);
    load_tile<kPer>(bias, static_cast<const T*>(p.bias), first, width, team.lane);
#pragma unroll
    for (int k = 0; k < kLaneColumns; ++k) h[k] = fmaf((h[k] - mean) * rstd, weight[k], bias[k]);
    store_tile<kPer>(normed, h, first, width, team.lane);
  });
  if (width > 0 && team.warp == 0 && team.lane == 0) {
    store_global(static_cast<float*>(p.mean) + n, mean);
    store_global(static_cast<float*>(p.rstd) + n, rstd);
  }
}

// ---- backward
// ------------------------------------------------------------------------------------------------

template <class T, bool kFast>
__global__ void __launch_bounds__(BackwardTraits::kMaxThreads, BackwardTraits::kBlocksPerSm)
    backward_kernel(DropoutAddLayerNormBackward p, RowDropout dropout, TeamShape shape, int64_t parts) {
  constexpr int kPer = kLaneRun<T, kFast>;
  constexpr int kTiles = BackwardTraits::kTiles;
  auto& shared = shared_memory<BackwardTraits::Shared>();
  const Team team(shape);
  const int64_t part = static_cast<int64_t>(blockIdx.x);
  const int64_t begin = part * p.rows / parts, end = (part + 1) * p.rows / parts;
  float* weight_out = static_cast<float*>(p.workspace) + part * 2 * p.width;
  float* bias_out = weight_out + p.width;
  const bool has_sums = p.grad_weight != nullptr;

  // Where registers allow, a row flies in while the one before is worked on.
  constexpr bool kPrefetches = kFast && sizeof(T) == 2;
  constexpr int kHeld = kFast ? kTiles : 1;
  struct Row {
    RawTile<T, kPer> dy[kHeld], h[kHeld], stream[kHeld];
    float mean, rstd;
  };
  Row row;
  const auto load = [&](Row& to, int i, int64_t n, int first, int width) {
    to.dy[i].load(static_cast<const T*>(p.grad_normed) + n * p.width, first, width, team.lane);
    to.h[i].load(static_cast<const T*>(p.new_residual) + n * p.width, first, width, team.lane);
    if (kPrefetches && p.grad_new_residual != nullptr)
      to.stream[i].load(static_cast<const T*>(p.grad_new_residual) + n * p.width, first, width, team.lane);
  };
  const auto width_of = [&](int64_t n) { return n < end ? static_cast<int>(p.width) : 0; };
  const auto fetch = [&](Row& to, int64_t n) {
    to.mean = n < end ? load_global(static_cast<const float*>(p.mean) + n) : 0.0f;
    to.rstd = n < end ? load_global(static_cast<const float*>(p.rstd) + n) : 0.0f;
    if constexpr (kFast) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
        load(to, i, n, (i * team.warps + team.warp) * kTileColumns, width_of(n));
    }
  };
  Row next;
  if constexpr (kPrefetches) fetch(next, begin + team.index);

  float sums[2][kHeld][kLaneColumns] = {};  // of the weight and bias gradients
  int slot = 0;
#pragma unroll 1
  for (int64_t first_row = begin; first_row < end; first_row += shape.teams, slot ^= 1) {
    const int64_t n = first_row + team.index;
    const int width = width_of(n);
    if constexpr (kPrefetches) {
      row = next;
      fetch(next, n + shape.teams);
    } else {
      fetch(row, n);
    }
    const auto reload = [&](int i, int first) {
      if constexpr (!kFast) load(row, i, n, first, width);
    };
    const auto widened = [&](int i, float (&dy)[kLaneColumns], float (&xhat)[kLaneColumns]) {
      row.dy[i].widen_to(dy);
      row.h[i].widen_to(xhat);
#pragma unroll
      for (int k = 0; k < kLaneColumns; ++k) xhat[k] = (xhat[k] - row.mean) * row.rstd;
    };

    float means[2] = {};  // of g and of g xhat
    team.for_tiles<kTiles, kFast>(width, [&](int i, int first) {
      float weight[kLaneColumns], dy[kLaneColumns], xhat[kLaneColumns];
      reload(i, first);
      widened(i, dy, xhat);
      load_tile<kPer>(weight, static_cast<const T*>(p.weight), first, width, team.lane);
      if constexpr (!kFast) {  // a wide row is alone in its block: its sums live in the workspace
        if (n > begin && has_sums) {
          load_tile<1>(sums[0][i], weight_out, first, width, team.lane);
          load_tile<1>(sums[1][i], bias_out, first, width, team.lane);
        } else {
#pragma unroll
          for (int k = 0; k < kLaneColumns; ++k) sums[0][i][k] = sums[1][i][k] = 0.0f;
        }
      }
#pragma unroll
      for (int k = 0; k < kLaneColumns; ++k) {
        const float g = dy[k] * weight[k];
        means[0] += g;
        means[1] = fmaf(g, xhat[k], means[1]);
        sums[0][i][k] = fmaf(dy[k], xhat[k], sums[0][i][k]);
        sums[1][i][k] += dy[k];
      }
      if (!kFast && has_sums) {
        store_tile<1>(weight_out, sums[0][i], first, width, team.lane);
        store_tile<1>(bias_out, sums[1][i], first, width, team.lane);
      }
    });
    team.sum(means, shared.slots[slot]);
    const float g_mean = means[0] / static_cast<float>(p.width);
    const float g_xhat_mean = means[1] / static_cast<float>(p.width);

    team.for_tiles<kTiles, kFast>(width, [&](int i, int first) {
      float weight[kLaneColumns], grad[kLaneColumns], dy[kLaneColumns], xhat[kLaneColumns];
      reload(i, first);
      widened(i, dy, xhat);
      load_tile<kPer>(weight, static_cast<const T*>(p.weight), first, width, team.lane);
#pragma unroll
      for (int k = 0; k < kLaneColumns; ++k)
        grad[k] = fmaf(-xhat[k], g_xhat_mean, dy[k] * weight[k] - g_mean) * row.rstd;
      if (p.grad_new_residual != nullptr) {
        float stream[kLaneColumns];
        if constexpr (!kPrefetches)
          row.stream[i].load(static_cast<const T*>(p.grad_new_residual) + n * p.width, first, width,
                             team.lane);
        row.stream[i].widen_to(stream);
#pragma unroll
        for (int k = 0; k < kLaneColumns; ++k) grad[k] += stream[k];
      }
      float to_x[kLaneColumns];
      const uint32_t bits =
          dropout.active && p.grad_x != nullptr ? keep_bits<kPer>(dropout, n, first, team.lane) : 0u;
#pragma unroll
      for (int k = 0; k < kLaneColumns; ++k)
        to_x[k] = dropout.active ? dropped(grad[k], bits, k, dropout.scale) : grad[k];
      if (p.grad_residual != nullptr)
        store_tile<kPer>(static_cast<T*>(p.grad_residual) + n * p.width, grad, first, width, team.lane);
      if (p.grad_x != nullptr)
        store_tile<kPer>(static_cast<T*>(p.grad_x) + n * p.width, to_x, first, width, team.lane);
    });
  }

  if (kFast && has_sums) {
    if (shape.teams > 1) {
      const int thread = static_cast<int>(threadIdx.x);
      const auto sum_at = [&](int s) -> float& {
        return sums[s % 2][s / 2 / kLaneColumns][s / 2 % kLaneColumns];
      };
#pragma unroll
      for (int s = 0; s < BackwardTraits::kSums; ++s) store_shared(&shared.sums[s][thread], sum_at(s));
      __syncthreads();
      if (team.index > 0) return;
      for (int other = 1; other < shape.teams; ++other)
#pragma unroll
        for (int s = 0; s < BackwardTraits::kSums; ++s)
          sum_at(s) += load_shared(&shared.sums[s][other * team.warps * kWarp + thread]);
    }
    const int width = static_cast<int>(p.width);
    team.for_tiles<kTiles, kFast>(width, [&](int i, int first) {
      store_tile<kPer>(weight_out, sums[0][i], first, width, team.lane);
      store_tile<kPer>(bias_out, sums[1][i], first, width, team.lane);
    });
  }
}

}  // namespace

void dropout_add_layer_norm_forward(const DropoutAddLayerNormForward& p, cudaStream_t stream) {
  if (p.rows == 0) return;
  const RowDropout dropout(p.dropout);
  visit_gpu_floating(p.dtype, [&]<class T>(Type<T>) {
    const TeamShape shape(
        p.width, ForwardTraits::kTiles,
        rows_are_aligned<T>(p.width, p.x, p.residual, p.weight, p.bias, p.normed, p.new_residual));
    visit_bool(shape.fast, [&](auto fast) {
      launch(forward_kernel<T, fast.value>, dim3{blocks_for(p.rows, shape.teams), 1, 1},
             dim3{shape.threads(), 1, 1}, sizeof(ForwardTraits::Shared), stream, p, dropout, shape);
    });
  });
}

void dropout_add_layer_norm_backward(const DropoutAddLayerNormBackward& p, cudaStream_t stream) {
  const RowDropout dropout(p.dropout);
  const int64_t parts = dropout_add_layer_norm_partials(p.rows);
  visit_gpu_floating(p.dtype, [&]<class T>(Type<T>) {
    const TeamShape shape(p.width, BackwardTraits::kTiles,
                          rows_are_aligned<T>(p.width, p.grad_normed, p.grad_new_residual, p.new_residual,
                                              p.weight, p.grad_x, p.grad_residual, p.workspace));
    if (parts > 0) {
      visit_bool(shape.fast, [&](auto fast) {
        launch(backward_kernel<T, fast.value>, dim3{static_cast<unsigned>(parts), 1, 1},
               dim3{shape.threads(), 1, 1}, sizeof(BackwardTraits::Shared), stream, p, dropout, shape, parts);
      });
    }
    if (p.grad_weight == nullptr) return;
    sum_parts<T>({static_cast<const float*>(p.workspace),  // [parts, 2, E]
                  parts,
                  2 * p.width,
                  {p.grad_weight, p.grad_bias},
                  p.width},
                 stream);
  });
}

}  // namespace glm::cuda
