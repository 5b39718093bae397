// A matrix product C [M, N] = A B^T as its kernels see it: which tile a block takes, and how C reaches an epilogue
// that does what follows, and memory.
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

// The tile of C that a block takes. Eight tiles down, then one to the right: the blocks that run at a time share
// rows of A and B in L2.
struct GemmTile {
  int64_t row, col;
};

__device__ __forceinline__ GemmTile gemm_tile(const GemmProblem& p, int tile_rows, int tile_cols) {
  const int64_t row_tiles = (p.rows + tile_rows - 1) / tile_rows;
  const int64_t col_tiles = (p.cols + tile_cols - 1) / tile_cols;
  const int64_t band = blockIdx.x / (8 * col_tiles), within = blockIdx.x % (8 * col_tiles);
  const int64_t high = row_tiles - band * 8 < 8 ? row_tiles - band * 8 : 8;
  return {band * 8 + within % high, within / high};
}

// The steps of a block along its slice of the depth.
struct GemmSteps {
  int64_t begin;
  int count;
};

__device__ __forceinline__ GemmSteps gemm_steps(const GemmProblem& p, int64_t depth, int step_depth,
                                                int slice) {
  const int64_t all = (depth + step_depth - 1) / step_depth, begin = slice * all / p.slices;
  return {begin, static_cast<int>((slice + 1) * all / p.slices - begin)};
}

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

// 16 rows of C go through shared memory, so that a lane has neighbours of a row.
template <int kCols>
__device__ __forceinline__ void write_slab(float (&slab)[16][kCols + 8], const float (&c)[kCols / 8][4],
                                           int lane) {
#pragma unroll
  for (int j = 0; j < kCols / 8; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      store_shared(reinterpret_cast<Pack<float, 2>*>(&slab[lane / 4 + half * 8][j * 8 + lane % 4 * 2]),
                   Pack<float, 2>{{c[j][half * 2], c[j][half * 2 + 1]}});
  __syncwarp();
}

template <int kWidth>
__device__ __forceinline__ auto read_slab(float (&slab)[16][kWidth]) {
  return [&](int r, int at, int, float (&v)[4]) {
    const auto pack = load_shared(reinterpret_cast<const Pack<float, 4>*>(&slab[r][at]));
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = pack.value[e];
  };
}

// A warp hands 16 x kCols of C to an epilogue: a lane has four columns of a row.
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
