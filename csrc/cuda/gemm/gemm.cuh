// C [M, N] = A B^T with an epilogue that does what follows while C is in registers: A [M, K], B [N, K], sums
// in float. Three stages of panels fly in by cp.async, one barrier a step. C leaves each warp by 16 rows
// through shared memory, so that an epilogue sees four neighbours of a row and its accesses are whole
// sectors.
#pragma once

#include "cuda/dispatch.cuh"
#include "cuda/gemm/tile.cuh"

namespace glm::cuda {

struct GemmProblem {
  int64_t rows, cols, depth;  // M, N, K
  GemmOperand a, b;
  // Rows that count, where only the device knows how many: of M, or of K where limits_depth. Null: all.
  const int32_t* count = nullptr;
  int64_t first = 0;          // the number of row 0 among those counted
  bool limits_depth = false;  // and then all but the first add to C
  int slices = 1;             // of the depth, each a C of its own: an epilogue is told which

  __device__ __forceinline__ int64_t limited(int64_t size, bool is_depth) const {
    if (count == nullptr || limits_depth != is_depth) return size;
    const int64_t left = load_global(count) - first;
    return left < 0 ? 0 : left < size ? left : size;
  }
};

// Four neighbours of a row: one access where `whole`, else the first `count` one by one.
template <class T>
__device__ __forceinline__ void load_four(float (&v)[4], const T* place, int count, bool whole) {
  Pack<T, 4> pack = {};
  if (whole && count == 4) {
    pack = load_global(reinterpret_cast<const Pack<T, 4>*>(place));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) pack.value[i] = load_global(place + i);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = widen(pack.value[i]);
}

// Stores them rounded to T; with kKeep `v` becomes what was stored.
template <class T, bool kKeep = false>
__device__ __forceinline__ void store_four(T* place, float (&v)[4], int count, bool whole) {
  Pack<T, 4> pack;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pack.value[i] = narrow<T>(v[i]);
    if (kKeep) v[i] = widen(pack.value[i]);
  }
  if (whole && count == 4) return store_global(reinterpret_cast<Pack<T, 4>*>(place), pack);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < count) store_global(place + i, pack.value[i]);
}

// Whether rows of `stride` elements of T can be moved four at a time. Null is fine.
template <class T>
bool fours_are_aligned(int64_t stride, const void* pointer) {
  return stride % 4 == 0 && reinterpret_cast<uintptr_t>(pointer) % (4 * sizeof(T)) == 0;
}

// A warp hands 16 x kCols of C, or of a matrix in memory, to an epilogue: a lane has four columns of a row.
// read(r, c, v) gives the values; `sums` collects what the epilogue leaves of them.
template <int kCols, int kUnroll, class Epilogue, class Read>
__device__ __forceinline__ void finish_rows(const Epilogue& epilogue, const Read& read, int64_t row,
                                            int64_t col, int64_t row_end, int64_t col_end, int slice,
                                            int lane, float (&sums)[4]) {
  constexpr int kLanes = kCols / 4;  // of a row
  const int c = lane % kLanes * 4;
  const int64_t left = col_end - col - c;
  const int count = left < 4 ? static_cast<int>(left) : 4;
#pragma unroll kUnroll
  for (int r = lane / kLanes; r < 16; r += kWarp / kLanes) {
    if (row + r >= row_end || count <= 0) continue;
    float v[4];
    read(r, c, count, v);
    epilogue(v, row + r, col + c, count, slice);
    if constexpr (Epilogue::kSums) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (i < count) sums[i] += v[i];
    }
  }
}

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
  // Eight tiles down, then one to the right: the blocks that run at a time share rows of A and B in L2.
  const int64_t row_tiles = (p.rows + Traits::kRows - 1) / Traits::kRows;
  const int64_t col_tiles = (p.cols + Traits::kRows - 1) / Traits::kRows;
  const int64_t band = blockIdx.x / (8 * col_tiles), within = blockIdx.x % (8 * col_tiles);
  const int64_t high = row_tiles - band * 8 < 8 ? row_tiles - band * 8 : 8;
  const int64_t row_tile = band * 8 + within % high;
  const int64_t row0 = row_tile * Traits::kRows, col0 = within / high * Traits::kRows;
  const int64_t rows = p.limited(p.rows, false), depth = p.limited(p.depth, true);
  if (row0 >= rows) return;
  if (p.limits_depth && p.first > 0 && depth == 0) return;  // nothing to add to what was there

  const int slice = static_cast<int>(blockIdx.y);
  const int64_t all_steps = (depth + Traits::kDepth - 1) / Traits::kDepth;
  const int64_t begin = slice * all_steps / p.slices;
  const int steps = static_cast<int>((slice + 1) * all_steps / p.slices - begin);
  const auto fetch = [&](int step) {
    if (step < steps) {
      unsigned char (&panel)[2][Traits::kPanel] = shared.panel[step % Traits::kStages];
      const int64_t k = (begin + step) * Traits::kDepth;
      fetch_panel<T, kA>(panel[0], p.a, row0, rows, k, depth);
      fetch_panel<T, kB>(panel[1], p.b, col0, p.cols, k, depth);
    }
    copy_async_commit();
  };

  WarpTile<T> c = {};
  const int row = warp / Traits::kWarpsAcross * Traits::kWarpRows;
  const int col = warp % Traits::kWarpsAcross * Traits::kWarpCols;
  for (int step = 0; step < Traits::kStages - 1; ++step) fetch(step);
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<Traits::kStages - 2>();
    __syncthreads();  // the panels of this step are here, and nobody reads those of the one before
    fetch(step + Traits::kStages - 1);
    unsigned char (&panel)[2][Traits::kPanel] = shared.panel[step % Traits::kStages];
    Multiply<T, kA, kB>::step(c, panel[0], panel[1], row, col, lane);
  }
  copy_async_wait<0>();
  __syncthreads();

  float sums[4] = {};
  auto& slab = shared.out.slab[warp];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < Traits::kWarpCols / 8; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        store_shared(reinterpret_cast<Pack<float, 2>*>(&slab[lane / 4 + half * 8][j * 8 + lane % 4 * 2]),
                     Pack<float, 2>{{c[i][j][half * 2], c[i][j][half * 2 + 1]}});
    __syncwarp();
    const auto read = [&](int r, int at, int, float (&v)[4]) {
      const auto pack = load_shared(reinterpret_cast<const Pack<float, 4>*>(&slab[r][at]));
#pragma unroll
      for (int e = 0; e < 4; ++e) v[e] = pack.value[e];
    };
    finish_rows<Traits::kWarpCols, 2>(epilogue, read, row0 + row + i * 16, col0 + col, rows, p.cols, slice,
                                      lane, sums);
    __syncwarp();
  }
  if constexpr (Epilogue::kSums)
    finish_sums<Traits>(sums, shared.out.sums,
                        epilogue.sums == nullptr ? nullptr : epilogue.sums + row_tile * p.cols, col0, p.cols,
                        warp, lane);
}

// The same epilogue over a matrix that another kernel has computed: values [M, N] with any strides.
template <class T>
struct Values {
  int64_t rows, cols, row_stride, col_stride;
  const T* data;
  bool whole;  // four neighbours at a time
};

template <class T>
struct ColumnSums {
  float sums[2][GemmTraits<T>::kRows];
};

template <class T, class Epilogue>
__global__ void __launch_bounds__(GemmTraits<T>::kThreads)
    elementwise_kernel(Values<T> values, Epilogue epilogue) {
  using Traits = GemmTraits<T>;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * Traits::kRows,
                row = row0 + warp / Traits::kWarpsAcross * Traits::kWarpRows;
  const int64_t col0 = static_cast<int64_t>(blockIdx.y) * Traits::kRows,
                col = col0 + warp % Traits::kWarpsAcross * Traits::kWarpCols;
  float sums[4] = {};
  for (int i = 0; i < 4; ++i) {
    const auto read = [&](int r, int c, int count, float (&v)[4]) {
      const T* place = values.data + (row + i * 16 + r) * values.row_stride + (col + c) * values.col_stride;
      if (values.col_stride == 1) return load_four(v, place, count, values.whole);
#pragma unroll
      for (int e = 0; e < 4; ++e) v[e] = e < count ? widen(load_global(place + e * values.col_stride)) : 0.0f;
    };
    finish_rows<Traits::kWarpCols, 4>(epilogue, read, row + i * 16, col, values.rows, values.cols, 0, lane,
                                      sums);
  }
  if constexpr (Epilogue::kSums)
    finish_sums<Traits>(sums, shared_memory<ColumnSums<T>>().sums,
                        epilogue.sums == nullptr ? nullptr : epilogue.sums + blockIdx.x * values.cols, col0,
                        values.cols, warp, lane);
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
  if (lies<T>(kA, p.a, p.rows, p.depth) && lies<T>(kB, p.b, p.cols, p.depth))
    return run(gemm_kernel<T, kA, kB, Epilogue>);
  run(gemm_kernel<T, Layout::any, Layout::any, Epilogue>);
}

template <class T, class Epilogue>
void elementwise(int64_t rows, int64_t cols, const GemmOperand& x, const Epilogue& epilogue,
                 cudaStream_t stream) {
  using Traits = GemmTraits<T>;
  if (rows == 0 || cols == 0) return;
  const Values<T> values = {rows,
                            cols,
                            x.row_stride,
                            x.depth_stride,
                            static_cast<const T*>(x.data),
                            fours_are_aligned<T>(x.row_stride, x.data)};
  launch(elementwise_kernel<T, Epilogue>,
         dim3{blocks_for(rows, Traits::kRows), blocks_for(cols, Traits::kRows), 1},
         dim3{Traits::kThreads, 1, 1}, Epilogue::kSums ? sizeof(ColumnSums<T>) : 0, stream, values, epilogue);
}

// C, times a factor that the device knows, plus a bias, into rows of `stride` elements.
template <class Out, class Bias = Out>
struct StoreResult {
  static constexpr bool kSums = false;
  Out* out;
  int64_t stride;
  const Bias* bias = nullptr;     // [N]
  const float* factor = nullptr;  // null: 1
  bool adds = false;              // to what is there
  int64_t slice_size = 0;         // elements between the results of two slices of the depth
  bool whole = true;

  StoreResult(void* out, int64_t stride, const void* bias = nullptr)
      : out(static_cast<Out*>(out)), stride(stride), bias(static_cast<const Bias*>(bias)) {
    whole = fours_are_aligned<Out>(stride, out) && fours_are_aligned<Bias>(0, bias);
  }

  __device__ __forceinline__ void operator()(float (&v)[4], int64_t row, int64_t col, int count,
                                             int slice) const {
    Out* place = out + slice * slice_size + row * stride + col;
    float other[4];
    if (factor != nullptr) {
      const float f = load_global(factor);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] *= f;
    }
    if (bias != nullptr) {
      load_four(other, bias + col, count, whole);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] += other[i];
    }
    if (adds) {
      load_four(other, place, count, whole);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] += other[i];
    }
    store_four(place, v, count, whole);
  }
};

}  // namespace glm::cuda
