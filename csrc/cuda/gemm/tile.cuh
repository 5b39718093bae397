// What a block of the matrix product holds in shared memory, and how warps multiply it. C [M, N] = A B^T: a
// block has 128 x 128 of C, a warp 64 x 64 (of floats, whose operands take twice the registers, 64 x 32), and
// goes along the depth K by 64 bytes of a row at a time.
//
// A panel is 128 rows of an operand at such a step, 8 KB. It lies as the operand does in memory, in chunks of
// 16 bytes, and the chunks of a line are permuted so that ldmatrix, the loads of floats and cp.async are free
// of bank conflicts:
//   by depth   [128 rows][4 chunks]                    chunk c of row r lies at c ^ (r / 2 % 4)
//   by row     [32 or 16 depths][16 or 32 chunks]      chunk c of depth k at c ^ (k % 8), of floats at
//                                                      c ^ (k % 4 * 2)
#pragma once

#include "cuda/gemm/problem.cuh"

namespace glm::cuda {

template <class T>
struct GemmTraits {
  static constexpr int kRows = 128;                          // of C, and columns
  static constexpr int kChunk = 16 / int(sizeof(T));         // elements
  static constexpr int kDepth = 64 / int(sizeof(T));         // of a step
  static constexpr int kLine = kRows * int(sizeof(T)) / 16;  // chunks of a depth of a panel by row
  static constexpr int kStages = 3;
  static constexpr int kWarpRows = 64;  // of C
  static constexpr int kWarpCols = sizeof(T) == 4 ? 32 : 64;
  static constexpr int kWarpsAcross = kRows / kWarpCols;
  static constexpr int kWarps = 2 * kWarpsAcross;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kBlocksPerSm = 8 / kWarps;  // at most 255 registers a thread
  static constexpr int kPanel = kRows * 64;

  struct Shared {
    union {
      unsigned char panel[kStages][2][kPanel];  // of A and B
      struct {
        float slab[kWarps][16][kWarpCols + 8];  // of C, on its way out: 8 banks further each row
        float sums[2][kRows];                   // of columns, by the warps above and below
      } out;
    };
  };
  static_assert(sizeof(Shared) == 48 * 1024);
};

template <class T, Layout kLayout>
__device__ __forceinline__ unsigned char* chunk_of(unsigned char* panel, int row_or_depth, int chunk) {
  if constexpr (kLayout != Layout::by_row) {
    return panel + row_or_depth * 64 + (chunk ^ (row_or_depth / 2 & 3)) * 16;
  } else {
    const int turn = sizeof(T) == 4 ? (row_or_depth & 3) * 2 : row_or_depth & 7;
    // What is constant of the chunk stays an immediate offset.
    return panel + row_or_depth * GemmTraits<T>::kLine * 16 + (chunk & ~7) * 16 + ((chunk & 7) ^ turn) * 16;
  }
}

// Starts to fill a panel with rows [row, row + 128) and depths [depth, depth + kDepth); zeros past the ends.
template <class T, Layout kLayout>
__device__ __forceinline__ void fetch_panel(unsigned char* panel, const GemmOperand& x, int64_t row,
                                            int64_t row_end, int64_t depth, int64_t depth_end) {
  using Traits = GemmTraits<T>;
  const T* data = static_cast<const T*>(x.data);
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kLayout == Layout::by_depth) {
    const int chunk = thread % 4;
    const int64_t k = depth + chunk * Traits::kChunk;
#pragma unroll
    for (int r = thread / 4; r < Traits::kRows; r += Traits::kThreads / 4)
      copy_async(chunk_of<T, kLayout>(panel, r, chunk), data + (row + r) * x.row_stride + k,
                 row + r < row_end && k < depth_end);
  } else if constexpr (kLayout == Layout::by_row) {
    const int chunk = thread % Traits::kLine;
    const int64_t i = row + chunk * Traits::kChunk;
#pragma unroll
    for (int k = thread / Traits::kLine; k < Traits::kDepth; k += Traits::kThreads / Traits::kLine)
      copy_async(chunk_of<T, kLayout>(panel, k, chunk), data + (depth + k) * x.depth_stride + i,
                 depth + k < depth_end && i < row_end);
  } else {
    const bool along_depth = x.depth_stride == 1;  // neighbours in memory to neighbouring threads
#pragma unroll 4
    for (int e = thread; e < Traits::kRows * Traits::kDepth; e += Traits::kThreads) {
      const int r = along_depth ? e / Traits::kDepth : e % Traits::kRows;
      const int k = along_depth ? e % Traits::kDepth : e / Traits::kRows;
      T value = {};
      if (row + r < row_end && depth + k < depth_end)
        value = load_global(data + (row + r) * x.row_stride + (depth + k) * x.depth_stride);
      store_shared(
          reinterpret_cast<T*>(chunk_of<T, kLayout>(panel, r, k / Traits::kChunk)) + k % Traits::kChunk,
          value);
    }
  }
}

// A warp's part of C, in the layout of the mma's D: [16 rows][8 columns][4].
template <class T>
using WarpTile = float[4][GemmTraits<T>::kWarpCols / 8][4];

// 16-bit: rows [row, row + 64) of A times rows [col, col + kWarpCols) of B, on the tensor cores.
template <class T, Layout kA, Layout kB>
struct Multiply {
  static __device__ __forceinline__ void step(WarpTile<T>& c, unsigned char* a, unsigned char* b, int row,
                                              int col, int lane) {
#pragma unroll
    for (int k = 0; k < GemmTraits<T>::kDepth; k += 16) {
      uint32_t left[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kA == Layout::by_row) {
          load_matrices<4, true>(
              left[i], chunk_of<T, kA>(a, k + lane / 16 * 8 + lane % 8, row / 8 + i * 2 + lane / 8 % 2));
        } else {
          load_matrices(left[i], chunk_of<T, kA>(a, row + i * 16 + lane % 16, k / 8 + lane / 16));
        }
      }
#pragma unroll
      for (int j = 0; j < GemmTraits<T>::kWarpCols / 16; ++j) {
        uint32_t right[4];
        if constexpr (kB == Layout::by_row) {
          load_matrices<4, true>(right, chunk_of<T, kB>(b, k + lane % 16, col / 8 + j * 2 + lane / 16));
        } else {
          load_matrices(right,
                        chunk_of<T, kB>(b, col + j * 16 + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          mma_16x8x16<T>(c[i][j * 2], left[i], {right[0], right[1]});
          mma_16x8x16<T>(c[i][j * 2 + 1], left[i], {right[2], right[3]});
        }
      }
    }
  }
};

// float: three products of tf32 for one (Tf32Pair): what is left out is below 2^-22 of a product. Infinite
// elements give NaN.
template <Layout kA, Layout kB>
struct Multiply<float, kA, kB> {
  template <Layout kLayout>
  static __device__ __forceinline__ Tf32Pair element(unsigned char* panel, int row, int k) {
    const unsigned char* chunk = kLayout == Layout::by_row ? chunk_of<float, kLayout>(panel, k, row / 4)
                                                           : chunk_of<float, kLayout>(panel, row, k / 4);
    return Tf32Pair(
        load_shared(reinterpret_cast<const float*>(chunk) + (kLayout == Layout::by_row ? row : k) % 4));
  }

  static __device__ __forceinline__ void step(WarpTile<float>& c, unsigned char* a, unsigned char* b, int row,
                                              int col, int lane) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll 1  // both at a time would take more registers than there are
    for (int k = 0; k < GemmTraits<float>::kDepth; k += 8) {
      uint32_t big[4][4], small[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const Tf32Pair x = element<kA>(a, row + i * 16 + g + e % 2 * 8, k + t + e / 2 * 4);
          big[i][e] = x.big;
          small[i][e] = x.small;
        }
#pragma unroll
      for (int j = 0; j < GemmTraits<float>::kWarpCols / 8; ++j) {
        const Tf32Pair x = element<kB>(b, col + j * 8 + g, k + t),
                       y = element<kB>(b, col + j * 8 + g, k + t + 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          // Tensor cores cut off what they add, and those errors all point the same way. So each eight of the
          // depth starts from zero, and is added to the sum by the cores that round.
          float sum[4] = {};
          mma_16x8x8_tf32(sum, small[i], {x.big, y.big});
          mma_16x8x8_tf32(sum, big[i], {x.small, y.small});
          mma_16x8x8_tf32(sum, big[i], {x.big, y.big});
#pragma unroll
          for (int e = 0; e < 4; ++e) c[i][j][e] += sum[e];
        }
      }
    }
  }
};

}  // namespace glm::cuda
