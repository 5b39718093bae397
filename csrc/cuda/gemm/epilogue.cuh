// How C leaves a product: sixteen rows of a warp at a time to an epilogue, which does what follows, four neighbours of
// a row at a time.
#pragma once

#include "cuda/ptx.cuh"

namespace glm::cuda {

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

// A warp hands 16 rows of C, in the layout of an mma's D, to an epilogue: through shared memory, so that a lane has
// four columns of a row. `sums` collects what the epilogue leaves of them.
template <int kCols, class Epilogue>
__device__ __forceinline__ void finish_rows(const Epilogue& epilogue, const float (&c)[kCols / 8][4],
                                            float (&slab)[16][kCols + 8], int64_t row, int64_t col,
                                            int64_t row_end, int64_t col_end, int slice, int lane,
                                            float (&sums)[4]) {
#pragma unroll
  for (int j = 0; j < kCols / 8; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      store_shared(reinterpret_cast<Pack<float, 2>*>(&slab[lane / 4 + half * 8][j * 8 + lane % 4 * 2]),
                   Pack<float, 2>{{c[j][half * 2], c[j][half * 2 + 1]}});
  __syncwarp();
  constexpr int kLanes = kCols / 4;  // of a row
  const int at = lane % kLanes * 4;
  const int64_t left = col_end - col - at;
  const int count = left < 4 ? static_cast<int>(left) : 4;
#pragma unroll 2
  for (int r = lane / kLanes; r < 16; r += kWarp / kLanes) {
    if (row + r >= row_end || count <= 0) continue;
    const auto pack = load_shared(reinterpret_cast<const Pack<float, 4>*>(&slab[r][at]));
    float v[4] = {pack.value[0], pack.value[1], pack.value[2], pack.value[3]};
    epilogue(v, row + r, col + at, count, slice);
    if constexpr (Epilogue::kSums) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (i < count) sums[i] += v[i];
    }
  }
  __syncwarp();
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
