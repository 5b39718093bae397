// out = sum_s exp2(lse_s - lse) out_s over the splits of the keys, in order; lse = log2 sum_s exp2(lse_s).
#include <cmath>
#include <limits>

#include "cuda/attention/split.cuh"

namespace glm::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLn2 = 0.69314718055994530942f;
constexpr int kWarps = 4;  // a row each

template <class T>
__global__ void __launch_bounds__(kWarps* kWarp)
    combine_kernel(SpanAttention p, SplitKeys split, AttentionRows out, AttentionRows lse) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (row >= split.rows) return;
  const int64_t i = row % p.rows, h = row / p.rows % p.heads, b = row / p.rows / p.heads;

  const float own = lane < split.splits ? load_global(split.lse_of(lane, row)) : -kInfinity;
  float top = own;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2)
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, distance));
  const float weight = own == -kInfinity ? 0.0f : exp2_fast(own - top);
  float total = weight;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2)
    total += __shfl_xor_sync(kAllLanes, total, distance);
  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;  // 0: a row that sees nothing

  T* to = static_cast<T*>(out.data) + out.offset(b, h, i);
  for (int first = 0; first < p.head_dim; first += 2 * kWarp) {
    const int column = first + lane * 2;
    const bool inside = column < p.head_dim;
    float sum[2] = {};
#pragma unroll 4
    for (int s = 0; s < split.splits; ++s) {
      const float w = __shfl_sync(kAllLanes, weight, s);
      if (!inside) continue;
      const auto part =
          load_global(reinterpret_cast<const Pack<float, 2>*>(split.out_of(p, s, row) + column));
      sum[0] = fmaf(w, part.value[0], sum[0]);
      sum[1] = fmaf(w, part.value[1], sum[1]);
    }
    if (inside)
      store_global(reinterpret_cast<Pack<T, 2>*>(to + column),
                   narrow_pair<T>(sum[0] * inverse, sum[1] * inverse));
  }
  if (lane == 0)
    store_global(static_cast<float*>(lse.data) + lse.offset(b, h, i),
                 total == 0.0f ? -kInfinity : (top + log2f(total)) * kLn2);
}

}  // namespace

void launch_combine(const SpanAttention& p, const SplitKeys& split, const AttentionRows& out,
                    const AttentionRows& lse, cudaStream_t stream) {
  visit_gpu_floating(p.dtype, [&]<class T>(Type<T>) {
    launch(combine_kernel<T>, dim3{blocks_for(split.rows, kWarps), 1, 1}, dim3{kWarps * kWarp, 1, 1}, 0,
           stream, p, split, out, lse);
  });
}

}  // namespace glm::cuda
