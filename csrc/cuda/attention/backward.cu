// Backward of attention: a pass over dO and out for delta, then one kernel for dQ, one for dK and dV. Or one for
// all three, and a pass that writes dQ from its sums.
#include "cuda/attention/backward.cuh"
#include "cuda/kernels.h"

namespace glm::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kLog2E = 1.4426950408889634074;
constexpr int kStatisticsThreads = 128, kQueryThreads = 128;

// Delta is the diagonal of dO out^T, by the mma or the chains of fmaf that dP comes from: out is the value of the
// one key that a row sees, and delta has the bits of dP. A warp takes 16 rows from global memory: in 4-byte words
// for the mma; for the chains in chunks of 16 bytes, and the four lanes of a row compute the same.
template <class T, Products kProducts>
__global__ void __launch_bounds__(kStatisticsThreads) statistics_kernel(BackwardLaunch launch) {
  const SpanAttention& p = launch.op.problem;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const Tile tile = find_tile<TilesOf::rows>(p, launch.rows, static_cast<int>(blockIdx.x));
  if (tile.count == 0) return;
  const int h = static_cast<int>(blockIdx.y), head_dim = static_cast<int>(p.head_dim);
  for (int copy = 0; copy < launch.query_sums.copies; ++copy) {
    float* sums =
        launch.query_sums.of(copy, launch.statistics.place(p, tile, h) + tile.first + warp * 16, 0, lane);
    for (int i = 0; i < launch.query_sums.dim / 2; ++i) store_global(sums + i * kWarp, 0.0f);
  }
  const int row = tile.first + warp * 16 + lane / 4;  // and 8 further: in the sequence
  const AttentionRows &grad_out = launch.op.grad_out, &out = launch.op.out;
  const auto part = [&]<class Part>(Type<Part>, const AttentionRows& x, int i, int chunk, int at) {
    if (i >= tile.first + tile.count || chunk * kChunk<T> >= head_dim) return Part{};
    const T* place = rows_of<T>(x, p, tile, h, tile.sequence.first_row) + i * x.row + chunk * kChunk<T>;
    return load_global(reinterpret_cast<const Part*>(place) + at);
  };
  float deltas[2] = {};  // of rows g and g + 8
  if constexpr (kProducts == Products::ffma) {
    for (int first = 0; first * kChunk<T> < head_dim; first += kRowChain / kChunk<T>) {
      float chains[2] = {};
#pragma unroll 2
      for (int chunk = first; chunk < first + kRowChain / kChunk<T>; ++chunk)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Type<Pack<float, 4>> whole;
          const auto left = part(whole, grad_out, row + half * 8, chunk, 0);
          const auto right = part(whole, out, row + half * 8, chunk, 0);
#pragma unroll
          for (int k = 0; k < 4; ++k) chains[half] = fmaf(left.value[k], right.value[k], chains[half]);
        }
#pragma unroll
      for (int half = 0; half < 2; ++half) deltas[half] += chains[half];
    }
  } else {
    const auto word = [&](const AttentionRows& x, int i, int chunk) {  // word t of a chunk of 16 bytes
      return part(Type<uint32_t>{}, x, i, chunk, lane % 4);
    };
    float products[2][4] = {};  // rows 0 to 7 and 8 to 15 of out
    for (int chunk = 0; chunk * kChunk<T> < head_dim; chunk += 2) {
      const LeftFragment<T> left({word(grad_out, row, chunk), word(grad_out, row + 8, chunk),
                                  word(grad_out, row, chunk + 1), word(grad_out, row + 8, chunk + 1)});
      multiply<T>(products[0], left, word(out, row, chunk), word(out, row, chunk + 1));
      multiply<T>(products[1], left, word(out, row + 8, chunk), word(out, row + 8, chunk + 1));
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
      deltas[half] = lane / 4 % 2 == 0 ? products[half][half * 2] : products[half][half * 2 + 1];
  }
  if (lane % 4 != lane / 8) return;  // of the four lanes of a row this one has the diagonal of the mma
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = row + half * 8;
    const auto statistic = [&](const AttentionRows& x) {
      return load_global(rows_of<float>(x, p, tile, h, tile.sequence.first_row) + i * x.row);
    };
    const float lse = i < tile.first + tile.count ? statistic(launch.op.lse) : -kInfinity;
    RowStatistic result{kInfinity, 0.0f, 0.0f, 0.0f};
    if (lse != -kInfinity) {
      const float grad_lse = launch.op.grad_lse.data == nullptr ? 0.0f : statistic(launch.op.grad_lse);
      result = {lse * static_cast<float>(kLog2E), deltas[half], grad_lse, 0.0f};
    }
    store_global(launch.statistics.of(p, tile, h) + i, result);
  }
}

// dQ from its sums; a warp takes 16 rows.
template <class T, int kDim>
__global__ void __launch_bounds__(kQueryThreads) query_kernel(BackwardLaunch launch) {
  auto& shared = shared_memory<Panel<T, kTileRows, kDim>>();
  const SpanAttention& p = launch.op.problem;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const Tile tile = find_tile<TilesOf::rows>(p, launch.rows, static_cast<int>(blockIdx.x));
  if (tile.count == 0) return;
  const int h = static_cast<int>(blockIdx.y), row = tile.first + warp * 16;
  float sums[kDim / 8][4] = {};
  for (int copy = 0; copy < launch.query_sums.copies; ++copy) {
    const float* place = launch.query_sums.of(copy, launch.statistics.place(p, tile, h) + row, 0, lane);
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[d][i] += load_global(place + (d * 4 + i) * kWarp);
  }
  const AttentionRows& out = launch.op.grad_query;
  write_rows<T, kDim>(rows_of<T>(out, p, tile, h, tile.sequence.first_row) + row * out.row, out.row, sums,
                      {launch.scale, launch.scale}, shared, warp * 16, tile.count - warp * 16,
                      static_cast<int>(p.head_dim), lane);
}

void launch_query(const BackwardLaunch& params, cudaStream_t stream) {
  const SpanAttention& p = params.op.problem;
  visit_attention(p, [&]<class T>(Type<T>, auto dim) {
    if constexpr (sizeof(T) == 2 && dim.value <= 128)
      launch(query_kernel<T, dim.value>, tile_grid(p, TilesOf::rows, kTileRows), dim3{kQueryThreads, 1, 1},
             sizeof(Panel<T, kTileRows, dim.value>), stream, params);
  });
}

}  // namespace

// Row statistics, sums of dQ (both begin where a line of memory does), two lists of tiles.
int64_t span_attention_backward_workspace(const SpanAttention& p, GradQuery way) {
  const RowStatistics statistics(p, nullptr);
  return statistics.size * 4 + QuerySums(p, way, statistics, nullptr).size() +
         TileList::size(p, kTileRows) * 4;
}

void span_attention_backward(const SpanAttentionBackward& op, cudaStream_t stream) {
  const SpanAttention& p = op.problem;
  if (p.batch == 0 && p.cu_seqlens == nullptr) return;
  if (p.heads == 0) return;
  check_attention(p);
  check_rows("out", op.out, element_bytes(p.dtype));
  check_rows("grad_out", op.grad_out, element_bytes(p.dtype));
  check_rows("grad_query", op.grad_query, element_bytes(p.dtype));
  check_rows("grad_key", op.grad_key, element_bytes(p.dtype));
  check_rows("grad_value", op.grad_value, element_bytes(p.dtype));
  const RowStatistics statistics(p, op.workspace);
  const QuerySums query_sums(p, op.way, statistics,
                             reinterpret_cast<float*>(statistics.data + statistics.size));
  const TileList rows = {reinterpret_cast<Pack<int, 2>*>(query_sums.data + query_sums.size())};
  const BackwardLaunch params = {
      .op = op,
      .statistics = statistics,
      .query_sums = query_sums,
      .scale = static_cast<float>(p.scale),
      .scale_log2 = static_cast<float>(p.scale * kLog2E),
      .keep = KeepRule(p.dropout),
      .rows = rows,
      .keys = {rows.data + TileList::size(p, kTileRows)},
  };
  launch_tile_list(p, TilesOf::rows, kTileRows, params.rows, stream);
  launch_tile_list(p, TilesOf::keys, kTileRows, params.keys, stream);
  if (p.rows > 0) {
    visit_gpu_floating(p.dtype, [&]<class T>(Type<T>) {
      const auto launch_statistics = [&]<Products kProducts>(By<kProducts>) {
        launch(statistics_kernel<T, kProducts>, tile_grid(p, TilesOf::rows, kTileRows),
               dim3{kStatisticsThreads, 1, 1}, 0, stream, params);
      };
      if constexpr (std::is_same_v<T, float>)
        if (uses_ffma()) return launch_statistics(By<Products::ffma>{});
      launch_statistics(By<Products::mma>{});
    });
  }
  if (takes_short(p, op.way)) return launch_grad_short(params, stream);
  if (p.rows > 0 && query_sums.copies == 0) launch_grad_query(params, stream);
  if (p.keys > 0) launch_grad_key_and_value(params, stream);
  if (p.rows > 0 && query_sums.copies > 0) launch_query(params, stream);
}

}  // namespace glm::cuda
