// out = dropout(token_table[tokens] + position_table[positions] + block_table[block_positions]) on a GPU. A
// warp takes a row: three 16-byte loads, two sums, one store for 8 columns. The tables of positions are small
// and stay in L2, so that the traffic is one read of a token row and one write: E * 2 * sizeof(T) bytes a
// row.
//
// An id outside of its table gives a row of NaN, and nothing is read: to report it, as the CPU does, the host
// would have to wait for the stream.
#include <limits>

#include "cuda/dispatch.cuh"
#include "cuda/kernels.h"
#include "cuda/rows.cuh"

namespace glm::cuda {
namespace {

template <class T, bool kAligned>
__global__ void __launch_bounds__(kBlockWarps* kWarp)
    forward_kernel(Embedding2DForward p, RowDropout dropout) {
  constexpr int kPer = kLaneRun<T, kAligned>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t n =
      static_cast<int64_t>(blockIdx.x) * kBlockWarps + static_cast<int64_t>(threadIdx.x) / kWarp;
  if (n >= p.rows) return;

  const int width = static_cast<int>(p.width);
  const T* row[3];
  bool inside = true;
#pragma unroll
  for (int which = 0; which < 3; ++which) {
    const int64_t id = load_global(p.lookups[which].ids + n);
    inside &= 0 <= id && id < p.lookups[which].table_rows;
    row[which] = static_cast<const T*>(p.lookups[which].table) + id * p.width;
  }
  for (int first = 0; first < width; first += kTileColumns) {
    float sum[kLaneColumns], term[2][kLaneColumns];
    if (inside) {
      load_tile<kPer>(sum, row[0], first, width, lane);
      load_tile<kPer>(term[0], row[1], first, width, lane);
      load_tile<kPer>(term[1], row[2], first, width, lane);
    }
    const uint32_t bits = dropout.active ? keep_bits<kPer>(dropout, n, first, lane) : 0u;
#pragma unroll
    for (int k = 0; k < kLaneColumns; ++k) {
      sum[k] = inside ? sum[k] + term[0][k] + term[1][k] : std::numeric_limits<float>::quiet_NaN();
      if (dropout.active && inside) sum[k] = dropped(sum[k], bits, k, dropout.scale);
    }
    store_tile<kPer>(static_cast<T*>(p.out) + n * p.width, sum, first, width, lane);
  }
}

}  // namespace

void embedding_2d_forward(const Embedding2DForward& p, cudaStream_t stream) {
  if (p.rows == 0) return;
  GLM_CHECK(p.width < (int64_t{1} << 30), "width: expected fewer than 2^30 columns, got ", p.width);
  visit_gpu_floating(p.dtype, [&]<class T>(Type<T>) {
    const bool aligned =
        rows_are_aligned<T>(p.width, p.lookups[0].table, p.lookups[1].table, p.lookups[2].table, p.out);
    visit_bool(aligned, [&](auto is_aligned) {
      launch(forward_kernel<T, is_aligned.value>, dim3{blocks_for(p.rows, kBlockWarps), 1, 1},
             dim3{kBlockWarps * kWarp, 1, 1}, 0, stream, p, RowDropout(p.dropout));
    });
  });
}

}  // namespace glm::cuda
