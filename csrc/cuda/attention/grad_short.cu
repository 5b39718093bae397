// All gradients of short sequences in one kernel: a block takes a head, its tiles of keys one after the other, and
// keeps the sums of dQ in shared memory. Five products a tile instead of seven, no sums in memory, and one order
// of addition. 16-bit elements, head dims up to 64, as many rows as there is room for.
#include <algorithm>

#include "cuda/attention/grad_key.cuh"

namespace glm::cuda {
namespace {

constexpr int kHeadDim = 64, kKeys = 128, kQueries = 64;
constexpr int kMostRows = 512;         // as many as an sm_90 has room for
constexpr int64_t kLeastBlocks = 128;  // of a launch: a block has an SM to itself

template <class T>
using Traits = GradKeyTraits<T, kHeadDim, Products::mma, kQueries, true, kKeys>;

template <class T>
struct Shared {
  typename Traits<T>::Shared tile;
  // Of 64 rows, as the warps hold them: 16 rows and 32 columns each. Only the lane that wrote a sum reads it.
  float sums[kMostRows / kQueries][kQueries * kHeadDim];  // a launch asks for those that there are
};
static_assert(finds_room(Card::hopper, sizeof(Shared<bf16>), 1));

template <class T>
__global__ void __launch_bounds__(Traits<T>::kThreads, 1) grad_short_kernel(BackwardLaunch launch) {
  constexpr int kEights = Traits<T>::kQueryColumns / 8;
  auto& shared = shared_memory<Shared<T>>();
  const SpanAttention& p = launch.op.problem;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int h = static_cast<int>(blockIdx.y), row_blocks = static_cast<int>(p.rows + kQueries - 1) / kQueries;
  const auto sum = [&](int block, int d, int i) {
    return &shared.sums[block][((warp * kEights + d) * 4 + i) * kWarp + lane];
  };
  for (int block = 0; block < row_blocks; ++block)
#pragma unroll
    for (int d = 0; d < kEights; ++d)
#pragma unroll
      for (int i = 0; i < 4; ++i) store_shared(sum(block, d, i), 0.0f);

  for (int n = 0; n * kKeys < p.keys; ++n) {
    const auto add_query = [&](int, int row, int, const float (&part)[kEights][4]) {
#pragma unroll
      for (int d = 0; d < kEights; ++d)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float* place = sum(row / kQueries, d, i);
          store_shared(place, load_shared(place) + part[d][i]);
        }
    };
    grad_key_tile<Traits<T>>(launch, shared.tile, find_tile<TilesOf::keys, kKeys>(p, {}, n), h, 0, add_query);
    __syncthreads();  // gradients of keys have left through the tiles
  }

  const Tile rows = find_tile<TilesOf::rows, kQueries>(p, {}, 0);
  const AttentionRows& out = launch.op.grad_query;
  const int row0 = warp % 4 * 16, column = warp / 4 * kEights * 8;
  for (int block = 0; block < row_blocks; ++block) {
    float sums[kEights][4];
#pragma unroll
    for (int d = 0; d < kEights; ++d)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[d][i] = load_shared(sum(block, d, i));
    const int row = block * kQueries + row0;
    write_rows<T, kEights * 8>(rows_of<T>(out, p, rows, h, 0) + row * out.row + column, out.row, sums,
                               {launch.scale, launch.scale}, shared.tile.tiles.fixed[0], warp * 16,
                               static_cast<int>(p.rows) - row, static_cast<int>(p.head_dim) - column, lane);
  }
}

int64_t shared_bytes_for(const SpanAttention& p) {
  const int64_t row_blocks = (p.rows + kQueries - 1) / kQueries;
  return static_cast<int64_t>(sizeof(Traits<bf16>::Shared) +
                              row_blocks * kQueries * kHeadDim * sizeof(float));
}

}  // namespace

bool takes_short(const SpanAttention& p, GradQuery way) {
  return way == GradQuery::sums_in_order && p.dtype != DType::f32 && p.head_dim <= kHeadDim &&
         p.cu_seqlens == nullptr && p.group() == 1 && 0 < p.rows && p.rows <= kMostRows && p.keys > 0 &&
         p.batch * p.heads >= kLeastBlocks && shared_bytes_for(p) <= shared_bytes_per_block();
}

void launch_grad_short(const BackwardLaunch& params, cudaStream_t stream) {
  const SpanAttention& p = params.op.problem;
  visit_gpu_floating(p.dtype, [&]<class T>(Type<T>) {
    if constexpr (sizeof(T) == 2)
      launch(grad_short_kernel<T>, dim3{1, static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch)},
             dim3{Traits<T>::kThreads, 1, 1},
             SharedBytes(shared_bytes_for(p), std::min<int64_t>(sizeof(Shared<T>), shared_bytes_per_block())),
             stream, params);
  });
}

}  // namespace glm::cuda
