// C [M, N] = A B^T with an epilogue that does what follows while C is in registers: A [M, K], B [N, K], sums
// in float. Three stages of panels fly in by cp.async, one barrier a step. C leaves each warp by 16 rows
// through shared memory, so that an epilogue sees four neighbours of a row and its accesses are whole
// sectors.
#pragma once

#include "cuda/device.h"
#include "cuda/dispatch.cuh"
#include "cuda/gemm/epilogue.cuh"
#include "cuda/gemm/tile.cuh"
#include "cuda/gemm/warpgroup.cuh"

namespace glm::cuda {

// The block's sums of columns, the lower half after the upper: sums [row tiles, N].
template <class Traits>
__device__ __forceinline__ void finish_sums(float (&sums)[4], float (&shared)[2][Traits::kRows], float* out,
                                            int64_t col, int64_t col_end, int warp, int lane) {
  constexpr int kLanes = Traits::kWarpCols / 4;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int mask = kWarp / 2; mask >= kLanes; mask /= 2)
      sums[i] += __shfl_xor_sync(kAllLanes, sums[i], mask);
  const int across = warp % Traits::kWarpsAcross * Traits::kWarpCols;
  if (lane < kLanes)
    store_shared(reinterpret_cast<Pack<float, 4>*>(&shared[warp / Traits::kWarpsAcross][across + lane * 4]),
                 Pack<float, 4>{{sums[0], sums[1], sums[2], sums[3]}});
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  if (out != nullptr && thread < Traits::kRows && col + thread < col_end)
    store_global(out + col + thread, load_shared(&shared[0][thread]) + load_shared(&shared[1][thread]));
}

template <class T, Layout kA, Layout kB, class Epilogue>
__global__ void __launch_bounds__(GemmTraits<T>::kThreads, GemmTraits<T>::kBlocksPerSm)
    gemm_kernel(GemmProblem p, Epilogue epilogue) {
  using Traits = GemmTraits<T>;
  auto& shared = shared_memory<typename Traits::Shared>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const GemmBlock block(p, Traits::kRows, Traits::kRows, Traits::kDepth);
  if (block.idle) return;
  const auto fetch = [&](int step) {
    if (step < block.steps) {
      unsigned char (&panel)[2][Traits::kPanel] = shared.panel[step % Traits::kStages];
      const int64_t k = (block.first_step + step) * Traits::kDepth;
      fetch_panel<T, kA>(panel[0], p.a, block.row, block.rows, k, block.depth);
      fetch_panel<T, kB>(panel[1], p.b, block.col, p.cols, k, block.depth);
    }
    copy_async_commit();
  };

  WarpTile<T> c = {};
  const int row = warp / Traits::kWarpsAcross * Traits::kWarpRows;
  const int col = warp % Traits::kWarpsAcross * Traits::kWarpCols;
  for (int step = 0; step < Traits::kStages - 1; ++step) fetch(step);
  for (int step = 0; step < block.steps; ++step) {
    copy_async_wait<Traits::kStages - 2>();
    __syncthreads();  // the panels of this step are here, and nobody reads those of the one before
    fetch(step + Traits::kStages - 1);
    unsigned char (&panel)[2][Traits::kPanel] = shared.panel[step % Traits::kStages];
    Multiply<T, kA, kB>::step(c, panel[0], panel[1], row, col, lane);
  }
  copy_async_wait<0>();
  __syncthreads();

  float sums[4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i)
    finish_rows<Traits::kWarpCols>(epilogue, c[i], shared.out.slab[warp], block.row + row + i * 16,
                                   block.col + col, block.rows, p.cols, block.slice, lane, sums);
  if constexpr (Epilogue::kSums)
    finish_sums<Traits>(sums, shared.out.sums,
                        epilogue.sums == nullptr ? nullptr : epilogue.sums + block.row_tile * p.cols,
                        block.col, p.cols, warp, lane);
}

// ---- launches
// ------------------------------------------------------------------------------------------------

template <class T>
bool lies(Layout layout, const GemmOperand& x, int64_t rows, int64_t depth) {
  const bool by_row = layout == Layout::by_row;
  const int64_t line = by_row ? rows : depth;
  return (by_row ? x.row_stride : x.depth_stride) == 1 &&
         rows_are_aligned<T>(by_row ? x.depth_stride : x.row_stride, x.data) &&
         (x.padded || rows_are_aligned<T>(line));
}

// kA and kB are how the operands usually lie; where one lies otherwise, both go in element by element.
template <class T, Layout kA, Layout kB, class Epilogue>
void gemm(const GemmProblem& p, const Epilogue& epilogue, cudaStream_t stream) {
  using Traits = GemmTraits<T>;
  if (p.rows == 0 || p.cols == 0) return;
  const dim3 grid{blocks_for(p.rows, Traits::kRows) * blocks_for(p.cols, Traits::kRows),
                  static_cast<unsigned>(p.slices), 1};
  const auto run = [&](auto kernel) {
    launch(kernel, grid, dim3{Traits::kThreads, 1, 1}, sizeof(typename Traits::Shared), stream, p, epilogue);
  };
  if (lies<T>(kA, p.a, p.rows, p.depth) && lies<T>(kB, p.b, p.cols, p.depth)) {
    if constexpr (sizeof(T) == 2)
      if (p.rows > Traits::kRows && has_wgmma()) return warpgroup_gemm<T, kA, kB>(p, epilogue, stream);
    return run(gemm_kernel<T, kA, kB, Epilogue>);
  }
  run(gemm_kernel<T, Layout::any, Layout::any, Epilogue>);
}

}  // namespace glm::cuda
