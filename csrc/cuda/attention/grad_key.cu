// dK and dV: a block takes 64 keys of one head. Head dim 256 has more sums than registers: each of two blocks
// takes 128 columns of dK and dV, and both compute the scores. Where there are sums for dQ (QuerySums), the
// blocks add to them.
#include <algorithm>

#include "cuda/attention/grad_key.cuh"

namespace glm::cuda {
namespace {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocksPerSm)
    grad_key_kernel(BackwardLaunch launch, int first_tile) {
  if constexpr (Traits::kWarpgroup && !kHasWgmma) return wrong_architecture();
  const SpanAttention& p = launch.op.problem;
  const int part = static_cast<int>(blockIdx.x) % Traits::kParts * Traits::kOut;  // first column
  const Tile tile =
      find_tile<TilesOf::keys>(p, launch.keys, first_tile + static_cast<int>(blockIdx.x) / Traits::kParts);
  if (tile.count == 0) return;
  const int copy = launch.query_sums.copies > 1 ? static_cast<int>(blockIdx.x) : 0;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const auto add_query = [&]<int kEights>(int h, int row, int column, const float (&sums)[kEights][4]) {
    float* place = launch.query_sums.of(copy, launch.statistics.place(p, tile, h) + row, column, lane);
#pragma unroll
    for (int d = 0; d < kEights; ++d)
#pragma unroll
      for (int i = 0; i < 4; ++i) add_global(place + (d * 4 + i) * kWarp, sums[d][i]);
  };
  grad_key_tile<Traits>(launch, shared_memory<typename Traits::Shared>(), tile, static_cast<int>(blockIdx.y),
                        part, add_query);
}

}  // namespace

void launch_grad_key_and_value(const BackwardLaunch& params, cudaStream_t stream) {
  const SpanAttention& p = params.op.problem;
  const dim3 grid = tile_grid(p, TilesOf::keys, kTileRows);
  const auto launch_tiles = [&]<class Traits>(Type<Traits>, unsigned first, unsigned count) {
    launch(grad_key_kernel<Traits>, dim3{count * Traits::kParts, grid.y, grid.z},
           dim3{Traits::kThreads, 1, 1}, sizeof(typename Traits::Shared), stream, params,
           static_cast<int>(first));
  };
  if (params.query_sums.copies == 0)
    return visit_backward(p, [&]<class T>(Type<T>, auto dim, auto products, auto card) {
      constexpr int kWalk = key_walk<T, dim.value, products.value, card.value>();
      using Traits = GradKeyTraits<T, dim.value, products.value, kWalk, false>;
      static_assert(finds_room(card.value, sizeof(typename Traits::Shared), Traits::kBlocksPerSm));
      launch_tiles(Type<Traits>{}, 0, grid.x);
    });
  visit_attention(p, [&]<class T>(Type<T>, auto dim) {
    if constexpr (sizeof(T) == 2 && dim.value <= 128) {
      // In order: the stream's. A launch adds to each sum from one block.
      const bool in_order = params.op.way == GradQuery::sums_in_order;
      const unsigned each = in_order ? static_cast<unsigned>(params.query_sums.copies) : grid.x;
      constexpr int kWalk = key_walk<T, dim.value, Products::mma, Card::large>();
      using Traits = GradKeyTraits<T, dim.value, Products::mma, kWalk, true>;
      static_assert(finds_room(Card::large, sizeof(typename Traits::Shared), Traits::kBlocksPerSm));
      static_assert(finds_room(Card::small, sizeof(typename Traits::Shared), 1));
      for (unsigned first = 0; first < grid.x; first += each)
        launch_tiles(Type<Traits>{}, first, std::min(each, grid.x - first));
    }
  });
}

}  // namespace glm::cuda
