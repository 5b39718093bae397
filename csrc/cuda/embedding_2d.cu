// out = dropout(token_table[tokens] + position_table[positions] + block_table[block_positions]) on a GPU. A
// warp takes a row: three 16-byte loads, two sums, one store for 8 columns. The tables of positions are small
// and stay in L2, so that the traffic is one read of a token row and one write: E * 2 * sizeof(T) bytes a
// row.
//
// Backward: a row of a table's gradient is the sum of dropout'(grad[n]) over the places n that looked it up,
// in their order. GLM's ids are the worst case for atomics: block position 0 is every token of Part A. So the
// places are sorted by id (cuda/sort.cuh), and the sorted places cut into slots of fixed size. A warp sums
// the ids of one slot; where an id goes over the end of a slot its sums are pieces, which a last kernel adds
// in order. The work of a slot is the same whatever the ids are.
//
// An id outside of its table gives a row of NaN, and nothing is read: to report it, as the CPU does, the host
// would have to wait for the stream.
#include <limits>

#include "cuda/dispatch.cuh"
#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "cuda/sort.cuh"

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

// ---- backward
// ------------------------------------------------------------------------------------------------

struct SumTraits {
  static constexpr int kSlot = kEmbeddingPieceRows;  // sorted places
  static constexpr int kBatch = 4;                   // rows of grad that a warp has in flight
  static_assert(kSlot == 2 * kWarp, "a lane holds two places");
  static_assert(kTileColumns == EmbeddingGpuWorkspace::kTile);
};

struct CombineTraits {
  static constexpr int kWarps = 8;  // each adds an eighth of an id's pieces

  struct Shared {
    float sums[kWarps][kTileColumns];
  };
};

// What the kernels below work on.
struct Backward {
  Embedding2DBackward op;
  RowDropout dropout;
  EmbeddingGpuWorkspace layout;
  const int32_t* order;  // [3, N]
  float* pieces;  // [3, slots, 2, E]: of the id that came over from the slot before; of that which goes on
  uint8_t* keep;  // [N, column tiles, 32]: a lane's 8 columns of a tile

  __device__ __forceinline__ int32_t place(int which, int64_t i) const {
    return load_global(order + which * op.rows + i);
  }
  __device__ __forceinline__ int32_t id(int which, int64_t i) const {
    return id_of(op.lookups[which], place(which, i));
  }
  __device__ __forceinline__ float* piece(int which, int64_t slot, int goes_on) const {
    return pieces + ((which * layout.slots + slot) * 2 + goes_on) * op.width;
  }
};

// The bits of dropout, once for the three tables.
template <int kPer>
__global__ void __launch_bounds__(kBlockWarps* kWarp) keep_kernel(Backward b) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t n =
      static_cast<int64_t>(blockIdx.x) * kBlockWarps + static_cast<int64_t>(threadIdx.x) / kWarp;
  if (n >= b.op.rows) return;
  for (int tile = 0; tile < b.layout.column_tiles; ++tile)
    store_global(b.keep + (n * b.layout.column_tiles + tile) * kWarp + lane,
                 static_cast<uint8_t>(keep_bits<kPer>(b.dropout, n, tile * kTileColumns, lane)));
}

// A warp sums 256 columns of one slot.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kBlockWarps* kWarp) sum_kernel(Backward b) {
  constexpr int kPer = kLaneRun<T, kAligned>;
  const Embedding2DBackward& p = b.op;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, which = static_cast<int>(blockIdx.y);
  const int64_t work =
      static_cast<int64_t>(blockIdx.x) * kBlockWarps + static_cast<int64_t>(threadIdx.x) / kWarp;
  const int64_t slot = work / b.layout.column_tiles;
  const EmbeddingLookup& lookup = p.lookups[which];
  if (slot >= b.layout.slots || lookup.table == nullptr) return;
  const int tile = static_cast<int>(work % b.layout.column_tiles), first = tile * kTileColumns;
  const int width = static_cast<int>(p.width);
  const int64_t begin = slot * SumTraits::kSlot;
  const int count = static_cast<int>(p.rows - begin < SumTraits::kSlot ? p.rows - begin : SumTraits::kSlot);

  int32_t places[2] = {}, ids[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (half * kWarp + lane >= count) continue;
    places[half] = b.place(which, begin + half * kWarp + lane);
    ids[half] = id_of(lookup, places[half]);
  }
  const auto nth = [&](const int32_t (&held)[2], int i) {
    return __shfl_sync(kAllLanes, i < kWarp ? held[0] : held[1], i % kWarp);
  };
  const int32_t before = slot > 0 ? b.id(which, begin - 1) : -1;
  const int32_t after = begin + count < p.rows ? b.id(which, begin + count) : -1;

  float sum[kLaneColumns] = {};
  int32_t id = nth(ids, 0);
  bool came_over = id == before;
  const auto finish = [&](bool goes_on) {
    if (came_over || goes_on) {
      store_tile<kPer>(b.piece(which, slot, came_over ? 0 : 1), sum, first, width, lane);
    } else if (id < lookup.table_rows) {
      T* row = static_cast<T*>(lookup.table) + id * p.width;
      if (lookup.add) {
        float held[kLaneColumns];
        load_tile<kPer>(held, row, first, width, lane);
#pragma unroll
        for (int k = 0; k < kLaneColumns; ++k) sum[k] += held[k];
      }
      store_tile<kPer>(row, sum, first, width, lane);
    }
  };
  for (int i0 = 0; i0 < count; i0 += SumTraits::kBatch) {
    float rows[SumTraits::kBatch][kLaneColumns];
    uint32_t keep[SumTraits::kBatch];
#pragma unroll
    for (int i = 0; i < SumTraits::kBatch; ++i) {
      const int64_t n = nth(places, i0 + i);
      load_tile<kPer>(rows[i], static_cast<const T*>(p.grad) + n * p.width, first, i0 + i < count ? width : 0,
                      lane);
      keep[i] = b.dropout.active && i0 + i < count
                    ? load_global(b.keep + (n * b.layout.column_tiles + tile) * kWarp + lane)
                    : 0u;
    }
#pragma unroll
    for (int i = 0; i < SumTraits::kBatch; ++i) {
      const int32_t next = nth(ids, i0 + i);
      if (i0 + i >= count) break;
      if (next != id) {
        finish(false);
        id = next;
        came_over = false;
#pragma unroll
        for (int k = 0; k < kLaneColumns; ++k) sum[k] = 0.0f;
      }
#pragma unroll
      for (int k = 0; k < kLaneColumns; ++k)
        sum[k] += b.dropout.active ? dropped(rows[i][k], keep[i], k, b.dropout.scale) : rows[i][k];
    }
  }
  finish(id == after);
}

// The sum of the pieces of an id whose places begin in this block's slot and go on in the next.
template <class T>
__global__ void __launch_bounds__(CombineTraits::kWarps* kWarp) combine_kernel(Backward b) {
  auto& shared = shared_memory<CombineTraits::Shared>();
  const int which = static_cast<int>(blockIdx.z);
  const EmbeddingLookup& lookup = b.op.lookups[which];
  if (lookup.table == nullptr) return;
  const int64_t slot = blockIdx.x, begin = slot * SumTraits::kSlot, end = begin + SumTraits::kSlot;
  const int32_t id = b.id(which, end - 1);
  if (id == lookup.table_rows || b.id(which, end) != id) return;
  if (slot > 0 && b.id(which, begin - 1) == id) return;
  int64_t last = slot + 1, beyond = b.layout.slots;  // the id's last slot lies in [last, beyond)
  while (beyond - last > 1) {
    const int64_t middle = (last + beyond) / 2;
    (b.id(which, middle * SumTraits::kSlot) == id ? last : beyond) = middle;
  }

  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kTileColumns, count = last - slot + 1;
  float sum[kLaneColumns] = {};
  for (int64_t i = warp * count / CombineTraits::kWarps; i < (warp + 1) * count / CombineTraits::kWarps;
       ++i) {
    const float* piece = b.piece(which, slot + i, i == 0 ? 1 : 0) + first;
#pragma unroll
    for (int k = 0; k < kLaneColumns; ++k)
      if (first + k * kWarp + lane < b.op.width) sum[k] += load_global(piece + k * kWarp + lane);
  }
#pragma unroll
  for (int k = 0; k < kLaneColumns; ++k) store_shared(&shared.sums[warp][k * kWarp + lane], sum[k]);
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  if (first + thread >= b.op.width) return;
  float total = 0.0f;
  for (int w = 0; w < CombineTraits::kWarps; ++w) total += load_shared(&shared.sums[w][thread]);
  T* out = static_cast<T*>(lookup.table) + id * b.op.width + first + thread;
  store_global(out, narrow<T>(lookup.add ? widen(load_global(out)) + total : total));
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

void embedding_2d_backward(const Embedding2DBackward& p, cudaStream_t stream) {
  if (p.rows == 0) return;
  GLM_CHECK(p.width < (int64_t{1} << 24), "width: expected fewer than 2^24 columns, got ", p.width);
  GLM_CHECK(p.rows < (int64_t{1} << 31), "tokens: expected fewer than 2^31 on a GPU, got ", p.rows);
  for (const EmbeddingLookup& lookup : p.lookups)
    GLM_CHECK(lookup.table_rows < (int64_t{1} << 31) - 1,
              "tables: expected fewer than 2^31 - 1 rows on a GPU, got ", lookup.table_rows);
  const EmbeddingGpuWorkspace layout(p.rows, p.width);
  auto* workspace = static_cast<unsigned char*>(p.workspace);
  const int32_t* order = sort_places(p.lookups, p.rows, reinterpret_cast<int32_t*>(workspace + layout.order),
                                     reinterpret_cast<int32_t*>(workspace + layout.counts), stream);
  const Backward b = {p,
                      RowDropout(p.dropout),
                      layout,
                      order,
                      reinterpret_cast<float*>(workspace + layout.pieces),
                      workspace + layout.keep};
  const dim3 block{kBlockWarps * kWarp, 1, 1};
  visit_gpu_floating(p.dtype, [&]<class T>(Type<T>) {
    const bool aligned = rows_are_aligned<T>(p.width, p.grad, p.lookups[0].table, p.lookups[1].table,
                                             p.lookups[2].table, b.pieces);
    visit_bool(aligned, [&](auto is_aligned) {
      if (b.dropout.active)
        launch(keep_kernel<kLaneRun<T, is_aligned.value>>, dim3{blocks_for(p.rows, kBlockWarps), 1, 1}, block,
               0, stream, b);
      launch(sum_kernel<T, is_aligned.value>,
             dim3{blocks_for(layout.slots * layout.column_tiles, kBlockWarps), 3, 1}, block, 0, stream, b);
    });
    if (layout.slots > 1)
      launch(combine_kernel<T>,
             dim3{static_cast<unsigned>(layout.slots - 1), static_cast<unsigned>(layout.column_tiles), 3},
             block, sizeof(CombineTraits::Shared), stream, b);
  });
}

}  // namespace glm::cuda
