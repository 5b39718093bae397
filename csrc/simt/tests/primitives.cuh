// One kernel for each group of primitives, of one warp: what goes in and comes out is compared with plain
// definitions (python_tests/simt/test_primitives.py). Never shipped.
#pragma once

#include "cuda/ptx.cuh"

namespace glm::cuda::testing {

// words[lane][i]: what lane gets of matrix i of tile [kCount * 8, 8].
template <int kCount, bool kTranspose>
__global__ void load_matrices_kernel(const uint16_t* tile, uint32_t* words) {
  struct Shared {
    uint16_t row[kCount * 8][8];
  };
  auto& shared = shared_memory<Shared>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < kCount * 64; i += kWarp)
    store_shared(&shared.row[i / 8][i % 8], load_global(tile + i));
  __syncwarp();
  uint32_t fragment[kCount];
  load_matrices<kCount, kTranspose>(fragment, shared.row[lane % (kCount * 8)]);
  for (int i = 0; i < kCount; ++i) store_global(words + lane * kCount + i, fragment[i]);
}

// d [16, 8] = a [16, 16] b [16, 8] + d, from row-major global memory by the layout in cuda/ptx.cuh.
template <class T>
__global__ void mma_kernel(const T* a, const T* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  const auto pair = [](T low, T high) {
    return static_cast<uint32_t>(low.bits) | static_cast<uint32_t>(high.bits) << 16;
  };
  uint32_t left[4], right[2];
  for (int i = 0; i < 4; ++i) {
    const T* place = a + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
    left[i] = pair(place[0], place[1]);
  }
  for (int i = 0; i < 2; ++i) {
    const T* place = b + (2 * t + i * 8) * 8 + g;
    right[i] = pair(place[0], place[8]);
  }
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = d[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  mma_16x8x16<T>(sum, left, right);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

// d [16, 8] = a [16, 8] b [8, 8] + d.
inline __global__ void mma_tf32_kernel(const float* a, const float* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  uint32_t left[4], right[2];
  for (int i = 0; i < 4; ++i) left[i] = to_tf32(a[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
  for (int i = 0; i < 2; ++i) right[i] = to_tf32(b[(t + i * 4) * 8 + g]);
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = d[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  mma_16x8x8_tf32(sum, left, right);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

// out[which][lane] for the shuffles and votes of x, in segments of `width`.
inline __global__ void shuffle_kernel(const float* x, float* out, int amount, int width) {
  const int lane = static_cast<int>(threadIdx.x);
  const float value = load_global(x + lane);
  const float result[6] = {
      __shfl_sync(kAllLanes, value, amount, width),
      __shfl_xor_sync(kAllLanes, value, amount, width),
      __shfl_up_sync(kAllLanes, value, amount, width),
      __shfl_down_sync(kAllLanes, value, amount, width),
      static_cast<float>(__ballot_sync(kAllLanes, value > 0.0f) & 0xffffu),
      static_cast<float>(__any_sync(kAllLanes, value > 0.0f)) +
          2.0f * static_cast<float>(__all_sync(kAllLanes, value > 0.0f)),
  };
  for (int i = 0; i < 6; ++i) store_global(out + i * kWarp + lane, result[i]);
}

// back[i] = x[i] rounded to T.
template <class T>
__global__ void round_kernel(const float* x, float* back, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kWarp)
    store_global(back + i, widen(narrow<T>(load_global(x + i))));
}

}  // namespace glm::cuda::testing
