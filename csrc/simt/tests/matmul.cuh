// A small matrix product with everything that the attention kernels have: two-stage cp.async, ldmatrix, mma,
// barriers, an epilogue through shared memory. It exists to be broken: each Fault is a mistake that kernels
// make, and the tests show that the host execution finds it. Never shipped.
#pragma once

#include "cuda/ptx.cuh"

namespace glm::cuda::testing {

enum class Fault : int {
  none,
  missing_barrier,    // a buffer is filled again while others still read it
  weak_wait,          // waits for one cp.async group too few
  out_of_bounds,      // reads rows past the end of A
  unwritten_output,   // leaves the last column alone
  shared_race,        // lanes read what other lanes of the warp wrote, without __syncwarp
  divergent_barrier,  // a warp without rows returns before the barriers of the others
  bank_conflict,      // rows of shared memory without padding: right, but slow
};

struct Matmul {
  int m, n, k;    // k a multiple of 8: 16-byte copies
  const bf16* a;  // [M, K]
  const bf16* b;  // [N, K]
  float* c;       // [M, N] = A B^T
};

struct MatmulTraits {
  static constexpr int kRows = 32, kCols = 16, kDepth = 16;  // of a block's tile; 16 rows a warp
  static constexpr int kStages = 2;
  static constexpr int kThreads = 64;
  static_assert(kRows * kDepth / 8 == kThreads, "one 16-byte copy of A a thread");

  template <int kPadding>
  struct Shared {
    bf16 a[kStages][kRows][kDepth + kPadding];
    bf16 b[kStages][kCols][kDepth + kPadding];
    float c[kRows][kCols + 4];
  };
};

template <Fault kFault>
using MatmulShared = MatmulTraits::Shared<kFault == Fault::bank_conflict ? 0 : 8>;

template <Fault kFault>
__global__ void __launch_bounds__(MatmulTraits::kThreads) matmul_kernel(Matmul p) {
  using Traits = MatmulTraits;
  auto& shared = shared_memory<MatmulShared<kFault>>();
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int row0 = static_cast<int>(blockIdx.y) * Traits::kRows,
            col0 = static_cast<int>(blockIdx.x) * Traits::kCols;
  if (kFault == Fault::divergent_barrier && row0 + warp * 16 >= p.m) return;

  const auto fetch = [&](int step) {
    const int r = thread / 2, e = thread % 2 * 8, k = step * Traits::kDepth + e,
              stage = step % Traits::kStages;
    const bool inside = row0 + r < p.m || kFault == Fault::out_of_bounds;
    copy_async(&shared.a[stage][r][e], p.a + static_cast<int64_t>(row0 + r) * p.k + k, inside && k < p.k);
    if (r < Traits::kCols)
      copy_async(&shared.b[stage][r][e], p.b + static_cast<int64_t>(col0 + r) * p.k + k,
                 col0 + r < p.n && k < p.k);
    copy_async_commit();
  };

  float d[2][4] = {};
  const int steps = (p.k + Traits::kDepth - 1) / Traits::kDepth;
  fetch(0);
  for (int step = 0; step < steps; ++step) {
    fetch(step + 1);  // past the end it fills with zeros, and keeps the count of groups even
    copy_async_wait<kFault == Fault::weak_wait ? 2 : 1>();
    __syncthreads();
    uint32_t a[4], b[4];
    const int stage = step % Traits::kStages;
    load_matrices(a, &shared.a[stage][warp * 16 + lane % 16][lane / 16 * 8]);
    load_matrices(b, &shared.b[stage][lane % 8 + lane / 16 * 8][lane / 8 % 2 * 8]);
    mma_16x8x16<bf16>(d[0], a, {b[0], b[1]});
    mma_16x8x16<bf16>(d[1], a, {b[2], b[3]});
    if (kFault != Fault::missing_barrier) __syncthreads();
  }
  copy_async_wait<0>();

  for (int half = 0; half < 2; ++half)
    for (int j = 0; j < 2; ++j)
      for (int i = 0; i < 2; ++i)
        store_shared(&shared.c[warp * 16 + lane / 4 + half * 8][j * 8 + lane % 4 * 2 + i],
                     d[j][half * 2 + i]);
  if (kFault != Fault::shared_race) __syncwarp();
  const int end = kFault == Fault::unwritten_output ? p.n - 1 : p.n;
  for (int r = lane / 16; r < 16; r += 2) {
    const int row = row0 + warp * 16 + r, col = col0 + lane % 16;
    if (row < p.m && col < end)
      store_global(p.c + static_cast<int64_t>(row) * p.n + col,
                   load_shared(&shared.c[warp * 16 + r][lane % 16]));
  }
}

template <Fault kFault>
void matmul(const Matmul& p, cudaStream_t stream) {
  const dim3 grid{static_cast<unsigned>((p.n + MatmulTraits::kCols - 1) / MatmulTraits::kCols),
                  static_cast<unsigned>((p.m + MatmulTraits::kRows - 1) / MatmulTraits::kRows), 1};
  launch(matmul_kernel<kFault>, grid, dim3{MatmulTraits::kThreads, 1, 1}, sizeof(MatmulShared<kFault>),
         stream, p);
}

}  // namespace glm::cuda::testing
