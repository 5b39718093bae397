// The matrix product of gemm.cuh on Hopper's warpgroups, for 16-bit elements. A block has 256 x 128 of C, a
// warpgroup 128 x 128: from L2 it takes 384 x 128 bytes for 64 of the depth, three quarters of what two blocks of
// 128 x 128 would. The products of a step run while the next one waits for its panels.
#pragma once

#include "cuda/dispatch.cuh"
#include "cuda/gemm/epilogue.cuh"
#include "cuda/gemm/problem.cuh"
#include "cuda/panel.cuh"
#include "cuda/wgmma.cuh"

namespace glm::cuda {

struct WarpgroupGemmTraits {
  static constexpr int kRows = 256, kCols = 128;  // of C
  static constexpr int kDepth = 64;               // of a step: 128 bytes
  static constexpr int kStages = 4;  // one in use, one whose products may still run, two on their way
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / kWarp;

  // [rows][depth], or [depth][rows] where the operand lies by row.
  template <class T, Layout kLayout, int kSize>
  using PanelOf =
      std::conditional_t<kLayout == Layout::by_row, Panel<T, kDepth, kSize>, Panel<T, kSize, kDepth>>;

  template <class T, Layout kA, Layout kB>
  struct Shared {
    union {
      struct {
        PanelOf<T, kA, kRows> a;
        PanelOf<T, kB, kCols> b;
      } stage[kStages];
      struct {
        float slab[kWarps][16][kCols + 8];  // of C, on its way out: 8 banks further each row
        float sums[kWarps][kCols];          // of columns
      } out;
    };
  };
};

// Starts to fill a panel with rows [row, ...) and depths [depth, ...) of an operand; zeros past the ends.
template <class T, Layout kLayout, class Panel>
__device__ __forceinline__ void fetch_operand(Panel& panel, const GemmOperand& x, int64_t row,
                                              int64_t row_end, int64_t depth, int64_t depth_end) {
  constexpr int kThreads = WarpgroupGemmTraits::kThreads;
  const auto left = [](int64_t begin, int64_t end) {
    return static_cast<int>(end - begin < 256 ? end - begin : 256);
  };
  const int rows = left(row, row_end), depths = left(depth, depth_end);
  const T* data = static_cast<const T*>(x.data);
  if constexpr (kLayout == Layout::by_row) {
    copy_rows<kThreads>(panel, data + depth * x.depth_stride + row, x.depth_stride, 0, 0, depths, rows);
  } else {
    copy_rows<kThreads>(panel, data + row * x.row_stride + depth, x.row_stride, 0, 0, rows, depths);
  }
}

// Rows [row, row + 64) of a panel for A, or all of one for B, at depths [k, k + 16).
template <Layout kLayout, class T, int kRows, int kColumns>
__device__ __forceinline__ WgmmaOperand operand(Panel<T, kRows, kColumns>& panel, int row, int k) {
  if constexpr (kLayout == Layout::by_row) {
    return {panel.block[row / 64][k], static_cast<int>(sizeof(panel.block[0]))};
  } else {
    return {&panel.block[0][row][k]};
  }
}

inline constexpr Major major_of(Layout layout) {
  return layout == Layout::by_row ? Major::row : Major::depth;
}

template <class T, Layout kA, Layout kB, class Epilogue>
__global__ void __launch_bounds__(WarpgroupGemmTraits::kThreads, 1)
    warpgroup_gemm_kernel(GemmProblem p, Epilogue epilogue) {
  if constexpr (!kHasWgmma) return wrong_architecture();
  using Traits = WarpgroupGemmTraits;
  auto& shared = shared_memory<Traits::Shared<T, kA, kB>>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const GemmBlock block(p, Traits::kRows, Traits::kCols, Traits::kDepth);
  if (block.idle) return;
  const auto fetch = [&](int step) {
    if (step < block.steps) {
      auto& stage = shared.stage[step % Traits::kStages];
      const int64_t k = (block.first_step + step) * Traits::kDepth;
      fetch_operand<T, kA>(stage.a, p.a, block.row, block.rows, k, block.depth);
      fetch_operand<T, kB>(stage.b, p.b, block.col, p.cols, k, block.depth);
    }
    copy_async_commit();
  };

  constexpr int kAhead = Traits::kStages - 2;
  float c[2][Traits::kCols / 8][4] = {};
  const int group_row = warp / 4 * 128;
  for (int step = 0; step < kAhead; ++step) fetch(step);
  for (int step = 0; step < block.steps; ++step) {
    copy_async_wait<kAhead - 1>();
    wgmma_publish();
    __syncthreads();  // the panels of this step are here, and the products of two steps ago are done
    fetch(step + kAhead);
    auto& stage = shared.stage[step % Traits::kStages];
    wgmma_begin(c[0], c[1]);
#pragma unroll
    for (int k = 0; k < Traits::kDepth; k += 16)
#pragma unroll
      for (int m = 0; m < 2; ++m)
        wgmma<T, major_of(kA), major_of(kB), true>(c[m], operand<kA>(stage.a, group_row + m * 64, k),
                                                   operand<kB>(stage.b, 0, k));
    wgmma_end();
    wgmma_wait<1>(c[0], c[1]);
  }
  wgmma_wait<0>(c[0], c[1]);
  copy_async_wait<0>();
  __syncthreads();

  float sums[4] = {};
#pragma unroll
  for (int m = 0; m < 2; ++m)
    finish_rows<Traits::kCols>(epilogue, c[m], shared.out.slab[warp],
                               block.row + group_row + m * 64 + warp % 4 * 16, block.col, block.rows, p.cols,
                               block.slice, lane, sums);
  if constexpr (Epilogue::kSums) {  // by 128 rows: a warpgroup's four warps in order
    store_shared(reinterpret_cast<Pack<float, 4>*>(&shared.out.sums[warp][lane * 4]),
                 Pack<float, 4>{{sums[0], sums[1], sums[2], sums[3]}});
    __syncthreads();
    const int col = static_cast<int>(threadIdx.x) % Traits::kCols, first = warp / 4 * 4;
    if (epilogue.sums == nullptr || block.row + group_row >= block.rows || block.col + col >= p.cols) return;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < 4; ++w) sum += load_shared(&shared.out.sums[first + w][col]);
    store_global(epilogue.sums + (block.row_tile * 2 + warp / 4) * p.cols + block.col + col, sum);
  }
}

template <class T, Layout kA, Layout kB, class Epilogue>
void warpgroup_gemm(const GemmProblem& p, const Epilogue& epilogue, cudaStream_t stream) {
  using Traits = WarpgroupGemmTraits;
  using Shared = Traits::Shared<T, kA, kB>;
  static_assert(sizeof(Shared) <= 227 * 1024, "shared memory of an sm_90");
  const dim3 grid{blocks_for(p.rows, Traits::kRows) * blocks_for(p.cols, Traits::kCols),
                  static_cast<unsigned>(p.slices), 1};
  launch(warpgroup_gemm_kernel<T, kA, kB, Epilogue>, grid, dim3{Traits::kThreads, 1, 1}, sizeof(Shared),
         stream, p, epilogue);
}

}  // namespace glm::cuda
