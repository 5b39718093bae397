// The last step of a sum over rows: parts [count, columns] of floats, added in order, each column to one
// number of T. A warp adds an eighth of the parts, 8 loads in flight.
#pragma once

#include "cuda/dispatch.cuh"
#include "cuda/ptx.cuh"

namespace glm::cuda {

struct SumPartsTraits {
  static constexpr int kColumns = kWarp;  // of a block
  static constexpr int kWarps = 8;

  struct Shared {
    float sums[kWarps][kColumns];
  };
};

struct Parts {
  const float* data;
  int64_t count, columns;
  void* out[2];  // columns before `split`, and those after it
  int64_t split;
};

template <class T>
__global__ void __launch_bounds__(SumPartsTraits::kWarps* kWarp) sum_parts_kernel(Parts parts) {
  auto& shared = shared_memory<SumPartsTraits::Shared>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * SumPartsTraits::kColumns + lane;
  const bool inside = column < parts.columns;
  const int64_t begin = warp * parts.count / SumPartsTraits::kWarps;
  const int64_t end = (warp + 1) * parts.count / SumPartsTraits::kWarps;
  float sum = 0.0f;
  if (inside)
#pragma unroll 8
    for (int64_t part = begin; part < end; ++part)
      sum += load_global(parts.data + part * parts.columns + column);
  store_shared(&shared.sums[warp][lane], sum);
  __syncthreads();
  if (warp > 0 || !inside) return;
  for (int w = 1; w < SumPartsTraits::kWarps; ++w) sum += load_shared(&shared.sums[w][lane]);
  T* out = column < parts.split ? static_cast<T*>(parts.out[0]) + column
                                : static_cast<T*>(parts.out[1]) + (column - parts.split);
  store_global(out, narrow<T>(sum));
}

template <class T>
void sum_parts(const Parts& parts, cudaStream_t stream) {
  if (parts.columns == 0) return;
  launch(sum_parts_kernel<T>, dim3{blocks_for(parts.columns, SumPartsTraits::kColumns), 1, 1},
         dim3{SumPartsTraits::kWarps * kWarp, 1, 1}, sizeof(SumPartsTraits::Shared), stream, parts);
}

}  // namespace glm::cuda
