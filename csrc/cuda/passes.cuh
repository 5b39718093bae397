// Passes over matrices in memory, which nothing but memory should bound: 16 bytes an access, several of them
// in flight in each lane. What is not aligned goes element by element: slow, and right.
#pragma once

#include "cuda/dispatch.cuh"
#include "cuda/run.cuh"

namespace glm::cuda {

struct PassTraits {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int blocks_per_sm(int run) { return run == 8 ? 4 : 2; }  // where nothing spills
  static constexpr int kInFlight = 4;                                       // runs of each tensor in a lane
  static constexpr int kTileRows = 128;                                     // of a block that sums columns
};

// ---- out = function(in)
// --------------------------------------------------------------------------------------

template <class T, int kRun, class Function>
__global__ void __launch_bounds__(PassTraits::kThreads, PassTraits::blocks_per_sm(kRun))
    map_kernel(const T* in, T* out, int64_t runs, Function function) {
  constexpr int kInFlight = PassTraits::kInFlight;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kInFlight * PassTraits::kThreads) + threadIdx.x;
  const auto run = [&](int i) { return first + i * PassTraits::kThreads; };
  Run<T, kRun> x[kInFlight];
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) x[i] = load_run<kRun>(in + run(i) * kRun, run(i) < runs);
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) {
    if (run(i) >= runs) return;
    float values[kRun];
    x[i].widen_to(values);
#pragma unroll
    for (int k = 0; k < kRun; ++k) values[k] = function(values[k]);
    store_run(out + run(i) * kRun, values);
  }
}

template <class T, class Function>
void map(const void* in, void* out, int64_t count, const Function& function, cudaStream_t stream) {
  if (count == 0) return;
  visit_bool(rows_are_aligned<T>(count, in, out), [&](auto whole) {
    constexpr int kRun = whole.value ? 16 / sizeof(T) : 1;
    launch(map_kernel<T, kRun, Function>,
           dim3{blocks_for(count / kRun, PassTraits::kInFlight * PassTraits::kThreads), 1, 1},
           dim3{PassTraits::kThreads, 1, 1}, 0, stream, static_cast<const T*>(in), static_cast<T*>(out),
           count / kRun, function);
  });
}

// ---- sums of columns, by tiles of rows: sums [row tiles, N], and null where only the pass is wanted
// --------------------------------------------------------------------------------------

template <int kRun>
struct ColumnSums {
  float sums[PassTraits::kWarps][kWarp * kRun];
};

// A block has 128 rows of 32 kRun columns: a lane kRun neighbours, a warp every eighth row. Body says what it
// loads of a run, and, given that, leaves there what is to be summed.
template <int kRun, class Body>
__global__ void __launch_bounds__(PassTraits::kThreads, PassTraits::blocks_per_sm(kRun))
    columns_kernel(int64_t rows, int64_t cols, Body body, float* out) {
  constexpr int kInFlight = PassTraits::kInFlight / Body::kTensors, kWarps = PassTraits::kWarps;
  static_assert(PassTraits::kTileRows % (kWarps * kInFlight) == 0);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int64_t col_tiles = (cols + kWarp * kRun - 1) / (kWarp * kRun);
  const int64_t row_tile = blockIdx.x / col_tiles;
  const int64_t col0 = blockIdx.x % col_tiles * (kWarp * kRun), col = col0 + lane * kRun;
  const int64_t row0 = row_tile * PassTraits::kTileRows + warp;
  float sums[kRun] = {};
#pragma unroll 1
  for (int first = 0; first < PassTraits::kTileRows; first += kInFlight * kWarps) {
    const auto row = [&](int i) { return row0 + first + i * kWarps; };
    const auto inside = [&](int i) { return row(i) < rows && col < cols; };
    typename Body::Loaded loaded[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) loaded[i] = body.load(row(i), col, inside(i));
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      float values[kRun];
      body.finish(loaded[i], inside(i), values);
#pragma unroll
      for (int k = 0; k < kRun; ++k) sums[k] += values[k];
    }
  }
  if (out == nullptr) return;

  // By quads of columns, so that no two lanes meet in a bank: the first quad of each lane, then the second.
  constexpr int kQuad = kRun < 4 ? kRun : 4;
  auto& shared = shared_memory<ColumnSums<kRun>>();
#pragma unroll
  for (int k = 0; k < kRun; k += kQuad) {
    Pack<float, kQuad> quad;
#pragma unroll
    for (int e = 0; e < kQuad; ++e) quad.value[e] = sums[k + e];
    store_shared(reinterpret_cast<Pack<float, kQuad>*>(&shared.sums[warp][k * kWarp + lane * kQuad]), quad);
  }
  __syncthreads();
  if (thread >= kWarp * kRun) return;
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += load_shared(&shared.sums[w][thread]);
  constexpr int kLine = kWarp * kQuad;
  const int64_t c = col0 + thread % kLine / kQuad * kRun + thread / kLine * kQuad + thread % kQuad;
  if (c < cols) store_global(out + row_tile * cols + c, sum);
}

template <int kRun, class Body>
void columns(int64_t rows, int64_t cols, const Body& body, float* sums, cudaStream_t stream) {
  if (rows == 0 || cols == 0) return;
  launch(columns_kernel<kRun, Body>,
         dim3{blocks_for(rows, PassTraits::kTileRows) * blocks_for(cols, kWarp * kRun), 1, 1},
         dim3{PassTraits::kThreads, 1, 1}, sums == nullptr ? 0 : sizeof(ColumnSums<kRun>), stream, rows, cols,
         body, sums);
}

// The sums alone, of a matrix with any strides.
template <class T, int kRun>
struct Summed {
  const T* data;
  int64_t row_stride, col_stride;

  static constexpr int kTensors = 1;
  using Loaded = Run<T, kRun>;
  __device__ __forceinline__ Loaded load(int64_t row, int64_t col, bool inside) const {
    return load_run<kRun>(data + row * row_stride + col * col_stride, inside);
  }
  __device__ __forceinline__ void finish(const Loaded& run, bool, float (&values)[kRun]) const {
    run.widen_to(values);
  }
};

template <class T>
void sum_columns(int64_t rows, int64_t cols, const void* data, int64_t row_stride, int64_t col_stride,
                 float* sums, cudaStream_t stream) {
  const bool aligned = col_stride == 1 && rows_are_aligned<T>(cols) && rows_are_aligned<T>(row_stride, data);
  visit_bool(aligned, [&](auto whole) {
    constexpr int kRun = whole.value ? 16 / sizeof(T) : 1;
    columns<kRun>(rows, cols, Summed<T, kRun>{static_cast<const T*>(data), row_stride, col_stride}, sums,
                  stream);
  });
}

}  // namespace glm::cuda
