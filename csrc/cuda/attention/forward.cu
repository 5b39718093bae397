// out = dropout(softmax(scale Q K^T)) V under GLM's mask, for sm_80 and later.
//
// A block takes 64 query rows of one head, a warp 16 of them (long sequences: twice as many, which halves
// what is read for each), and walks the key tiles that they see from right to left: S = Q K^T and O += P V by
// mma.sync or FFMA (attention/product.cuh), softmax online in base 2 (Dao, "FlashAttention-2", 2023), K and V of the
// next tile on their way by cp.async. What a tile is comes from integers alone (core/span_mask.h):
//
//     keys   0 ... begin | begin ............ full_end | ......... seen_end | ...... T
//            never read  | every row sees them         | some rows do       | never read
//
// so that only the tiles that a boundary cuts run the code of the mask. Head dims are padded to 64, 128 or
// 256 with zeros in shared memory.
#include <algorithm>

#include "cuda/attention/forward.cuh"
#include "cuda/attention/product.cuh"
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace glm::cuda {
namespace {

// Keys of a tile. FFMA unrolls its code for every one of them, and small tiles leave room for blocks that hide its
// loads.
template <class T, int kHeadDim, int kM, Products kProducts, Card kCard>
constexpr int key_tile() {
  constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(T));
  if (kProducts == Products::ffma) return kRowBytes > 256 ? 16 : 32;
  if (kRowBytes > 512) return 16;
  return kRowBytes > 128 && (kM == 2 || kCard == Card::small) ? 32 : 64;
}

template <class Element, int kPaddedDim, int kSixteens, int kKeyTile, Products kWay>
struct ForwardTraits {
  using T = Element;
  static constexpr Products kProducts = kWay;
  static constexpr int kHeadDim = kPaddedDim;
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(T));
  static constexpr int kM = kSixteens;   // of rows a warp
  static constexpr int kRows = 64 * kM;  // 4 warps
  static constexpr int kKeys = kKeyTile;
  static constexpr int kStages = kRowBytes <= 512 ? 2 : 1;
  static constexpr int kThreads = 128;
  static constexpr int kSmallBytes = kProducts == Products::ffma ? 256 : 128;
  static constexpr int kBlocksPerSm = kRowBytes <= kSmallBytes && kM == 1 ? 3
                                      : kRowBytes <= 2 * kSmallBytes      ? 2
                                                                          : 1;

  struct Shared {
    Panel<T, kRows, kHeadDim> query;  // and the output on its way out
    Panel<T, kKeys, kHeadDim> key[kStages], value[kStages];
  };
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocksPerSm)
    forward_kernel(ForwardLaunch launch) {
  using T = typename Traits::T;
  constexpr int kDim = Traits::kHeadDim, kKeys = Traits::kKeys;
  auto& shared = shared_memory<typename Traits::Shared>();
  const SpanAttention& p = launch.problem;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int split = static_cast<int>(blockIdx.x) % launch.split.splits;
  const Tile tile = find_tile<TilesOf::rows, Traits::kRows>(
      p, launch.list, static_cast<int>(blockIdx.x) / launch.split.splits);
  if (tile.count == 0) return;
  const SpanMask& mask = tile.sequence.mask;
  const int h = static_cast<int>(blockIdx.y), head_dim = static_cast<int>(p.head_dim);
  const int64_t kv_head = h / p.group();
  const int warp_row = warp * 16 * Traits::kM;
  const int row0 = tile.first + warp_row + lane / 4;  // and 8 further, of each 16: in the sequence

  const T* query = rows_of<T>(p.query, p, tile, h, tile.sequence.first_row);
  const T* key = rows_of<T>(p.key, p, tile, kv_head, tile.sequence.first_key);
  const T* value = rows_of<T>(p.value, p, tile, kv_head, tile.sequence.first_key);

  KeyTiles tiles(mask, tile.first, tile.first + tile.count, kKeys);
  if (launch.split.splits > 1) tiles.keep_share(split, launch.split.splits);
  const int begin = static_cast<int>(mask.begin), end = static_cast<int>(mask.length);

  constexpr int kAhead = Traits::kStages - 1;
  const auto fetch = [&](int n) {  // keys that nobody sees become zeros: 0 * NaN would leak from padding
    const int stage = (tiles.end - 1 - n) % Traits::kStages;
    copy_rows<Traits::kThreads>(shared.key[stage], key, p.key.row, n * kKeys, begin, end, head_dim);
    copy_rows<Traits::kThreads>(shared.value[stage], value, p.value.row, n * kKeys, begin, end, head_dim);
  };
  if (tiles.begin < tiles.end) {
    copy_rows<Traits::kThreads>(shared.query, query, p.query.row, tile.first, 0, tile.first + tile.count,
                                head_dim);
    if (kAhead > 0) fetch(tiles.end - 1);
    copy_async_commit();
  }

  RowState<Traits> state;
  uint32_t keep[Traits::kM] = {};  // of 64 keys
  for (int n = tiles.end - 1; n >= tiles.begin; --n) {
    const int stage = (tiles.end - 1 - n) % Traits::kStages, key0 = n * kKeys;
    if (n - kAhead >= tiles.begin) fetch(n - kAhead);
    copy_async_commit();
    copy_async_wait<kAhead>();
    __syncthreads();

    float scores[Traits::kM][kKeys / 8][4] = {};
    add_row_products<Traits::kProducts, T, kKeys>(scores, shared.query, warp_row, shared.key[stage], lane);
    const bool full = tiles.full(n);
#pragma unroll
    for (int m = 0; m < Traits::kM; ++m) {
      const int row = row0 + m * 16;
      scale_scores<kKeys>(scores[m], launch.first_scale);
      if (!full) mask_scores<Traits>(scores[m], mask, row, key0, lane);
      float correction[2];
      softmax_step<Traits>(scores[m], state, m, launch.scale, correction);
      rescale_out<Traits>(state, m, correction);
      if (!launch.keep.active) continue;
      if (n == tiles.end - 1 || (key0 + kKeys) % 64 == 0)
        keep[m] = draw_rows(launch.keep, tile.b, h, row, key0, lane);
      drop<kKeys>(scores[m], keep[m] >> key0 % 64 / 8 * 4);
    }
    add_column_products<Traits::kProducts, T, kKeys, kDim, true>(state.out, scores, shared.value[stage],
                                                                 lane);
    __syncthreads();  // the stage is free again
  }
  copy_async_wait<0>();
  write_state<Traits>(launch, state, shared.query, split, tile, h, warp_row, lane);
}

// Tiles of 128 rows read keys half as often; tiles of 64 make twice as many blocks and compute less of what
// nobody sees: of 1024 keys, a quarter of them Part A, 4 % against 9 % (of 512: 9 % against 17 %). Of an sm_86,
// long tiles of 256 bytes a row would take the whole shared memory for one block.
bool takes_long_tiles(const SpanAttention& p) {
  const int64_t rows = p.cu_seqlens == nullptr ? p.rows : p.rows / std::max(p.batch, int64_t{1});
  return rows >= 1024 && p.head_dim <= (is_small_card() ? 64 : 128) && p.dtype != DType::f32;
}

template <class T, int kHeadDim, int kM, Products kProducts = Products::mma>
void launch_forward(const ForwardLaunch& params, cudaStream_t stream) {
  visit_card([&](auto card) {
    constexpr int kKeys = key_tile<T, kHeadDim, kM, kProducts, card.value>();
    using Traits = ForwardTraits<T, kHeadDim, kM, kKeys, kProducts>;
    constexpr int64_t kSharedBytes = sizeof(typename Traits::Shared);
    static_assert(finds_room(card.value, kSharedBytes, Traits::kBlocksPerSm));
    const SpanAttention& p = params.problem;
    launch_tile_list(p, TilesOf::rows, Traits::kRows, params.list, stream);
    dim3 grid = tile_grid(p, TilesOf::rows, Traits::kRows);
    grid.x *= static_cast<unsigned>(params.split.splits);
    launch(forward_kernel<Traits>, grid, dim3{Traits::kThreads, 1, 1}, kSharedBytes, stream, params);
  });
}

}  // namespace

// A list of tiles; and the counter of persistent blocks, or what splits leave.
int64_t span_attention_forward_workspace(const SpanAttention& p) {
  return TileList::size(p, kTileRows) * 2 + (takes_warpgroups(p) ? 1 : SplitKeys(p, nullptr).floats(p));
}

void span_attention_forward(const SpanAttentionForward& op, cudaStream_t stream) {
  const SpanAttention& p = op.problem;
  if (p.batch == 0 && p.cu_seqlens == nullptr) return;
  if (p.rows == 0 || p.heads == 0) return;
  check_attention(p);
  const ForwardLaunch params = {
      .problem = p,
      .out = op.out,
      .lse = op.lse,
      .first_scale = p.scale > 0.0 ? 1.0f : static_cast<float>(p.scale * kLog2E),
      .scale = p.scale > 0.0 ? static_cast<float>(p.scale * kLog2E) : 1.0f,
      .keep = KeepRule(p.dropout),
      .list = {reinterpret_cast<Pack<int, 2>*>(op.workspace)},
      .split = SplitKeys(p, op.workspace),
  };
  if (takes_warpgroups(p)) return launch_forward_hopper(params, stream);
  visit_attention(p, [&]<class T>(Type<T>, auto dim) {
    if constexpr (sizeof(T) == 2 && dim.value <= 128)
      if (takes_long_tiles(p)) return launch_forward<T, dim.value, 2>(params, stream);
    if constexpr (std::is_same_v<T, float>)
      if (uses_ffma()) return launch_forward<T, dim.value, 1, Products::ffma>(params, stream);
    launch_forward<T, dim.value, 1>(params, stream);
  });
  if (params.split.splits > 1) launch_combine(p, params.split, op.out, op.lse, stream);
}

}  // namespace glm::cuda
