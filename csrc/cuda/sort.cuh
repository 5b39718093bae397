// The places of a batch in the order of their ids, places of one id in their own order: a radix sort by 8
// bits a step, the three tables of an embedding side by side (grid y). Nothing is added with atomics: lanes
// of a warp that hold the same digit find each other by ballots, and every warp counts for itself.
#pragma once

#include "cuda/ptx.cuh"
#include "ops/embedding_2d.h"

namespace glm::cuda {

struct SortTraits {
  static constexpr int kDigits = EmbeddingGpuWorkspace::kDigits;
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kRounds = 8;  // of 32 places, that a warp takes one after the other
  static constexpr int kTile = EmbeddingGpuWorkspace::kSortTile;
  static_assert(kTile == kThreads * kRounds);
  static_assert(kThreads == kDigits, "a thread for each digit");

  struct Shared {
    int32_t counts[kWarps][kDigits];
  };
  struct ScanShared {
    int32_t warps[kWarps];
  };
};

struct SortStep {
  EmbeddingLookup lookups[3];
  int32_t rows;
  int shift;            // of the 8 bits
  const int32_t* from;  // [3, N] the order so far; null: as they come
  int32_t* to;          // [3, N]
  int32_t* counts;      // [3, sort tiles, kDigits]

  // By constant indices: parameters indexed at run time would be copied to memory.
  __device__ __forceinline__ EmbeddingLookup lookup(unsigned which) const {
    return which == 0 ? lookups[0] : which == 1 ? lookups[1] : lookups[2];
  }
};

// An id outside of its table sorts behind all others, as if it were table_rows.
__device__ __forceinline__ int32_t id_of(const EmbeddingLookup& lookup, int64_t place) {
  const int64_t id = load_global(lookup.ids + place);
  return static_cast<int32_t>(0 <= id && id < lookup.table_rows ? id : lookup.table_rows);
}

// One warp's places: which they are, their digits, and the lanes that hold the same one.
struct SortRound {
  int32_t place;
  int digit;
  uint32_t peers;  // 0 for a lane without a place

  __device__ __forceinline__ SortRound(const SortStep& step, const EmbeddingLookup& lookup, int round) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * SortTraits::kTile +
                      (warp * SortTraits::kRounds + round) * kWarp + lane;
    const bool valid = i < step.rows;
    place = static_cast<int32_t>(i);
    if (valid && step.from != nullptr)
      place = load_global(step.from + static_cast<int64_t>(blockIdx.y) * step.rows + i);
    digit = valid ? id_of(lookup, place) >> step.shift & (SortTraits::kDigits - 1) : 0;
    peers = __ballot_sync(kAllLanes, valid);
#pragma unroll
    for (int bit = 0; bit < 8; ++bit) {
      const uint32_t votes = __ballot_sync(kAllLanes, (digit >> bit & 1) != 0);
      peers &= (digit >> bit & 1) != 0 ? votes : ~votes;
    }
    if (!valid) peers = 0;
  }

  // Counts the digits of a round, and returns how many of the lane's own came before it.
  __device__ __forceinline__ int32_t count(int32_t (&counts)[SortTraits::kDigits]) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int before = count_bits(peers & ((1u << lane) - 1u));
    const int32_t base = load_shared(&counts[digit]);
    __syncwarp();
    if (peers != 0 && before == 0) store_shared(&counts[digit], base + count_bits(peers));
    __syncwarp();
    return base + before;
  }
};

// Leaves the digits of each warp's places in `counts`; the block meets.
__device__ __forceinline__ void count_tile(const SortStep& step, const EmbeddingLookup& lookup,
                                           SortTraits::Shared& shared) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int w = 0; w < SortTraits::kWarps; ++w) store_shared(&shared.counts[w][threadIdx.x], 0);
  __syncthreads();
#pragma unroll 2
  for (int round = 0; round < SortTraits::kRounds; ++round)
    SortRound(step, lookup, round).count(shared.counts[warp]);
  __syncthreads();
}

inline __global__ void __launch_bounds__(SortTraits::kThreads) sort_count_kernel(SortStep step) {
  auto& shared = shared_memory<SortTraits::Shared>();
  const EmbeddingLookup lookup = step.lookup(blockIdx.y);
  if (lookup.table == nullptr) return;
  count_tile(step, lookup, shared);
  int32_t sum = 0;
  for (int w = 0; w < SortTraits::kWarps; ++w) sum += load_shared(&shared.counts[w][threadIdx.x]);
  const int64_t tile = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  store_global(step.counts + tile * SortTraits::kDigits + threadIdx.x, sum);
}

// Counts become the places where each tile's digits begin: digits first, then tiles. A thread has a digit.
inline __global__ void __launch_bounds__(SortTraits::kThreads) sort_scan_kernel(SortStep step, int tiles) {
  auto& shared = shared_memory<SortTraits::ScanShared>();
  const int thread = static_cast<int>(threadIdx.x);
  if (step.lookup(blockIdx.y).table == nullptr) return;
  int32_t* counts = step.counts + static_cast<int64_t>(blockIdx.y) * tiles * SortTraits::kDigits + thread;
  int32_t total = 0;
#pragma unroll 8
  for (int tile = 0; tile < tiles; ++tile)
    total += load_global(counts + static_cast<int64_t>(tile) * SortTraits::kDigits);
  const int lane = thread % kWarp;
  int32_t begin = total;  // summed over this digit and those before it
#pragma unroll
  for (int step_size = 1; step_size < kWarp; step_size *= 2) {
    const int32_t other = __shfl_up_sync(kAllLanes, begin, step_size);
    if (lane >= step_size) begin += other;
  }
  if (lane == kWarp - 1) store_shared(&shared.warps[thread / kWarp], begin);
  __syncthreads();
  begin -= total;
  for (int w = 0; w < thread / kWarp; ++w) begin += load_shared(&shared.warps[w]);
  for (int tile = 0; tile < tiles; ++tile) {
    int32_t* count = counts + static_cast<int64_t>(tile) * SortTraits::kDigits;
    const int32_t here = load_global(count);
    store_global(count, begin);
    begin += here;
  }
}

inline __global__ void __launch_bounds__(SortTraits::kThreads) sort_place_kernel(SortStep step) {
  auto& shared = shared_memory<SortTraits::Shared>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const EmbeddingLookup lookup = step.lookup(blockIdx.y);
  if (lookup.table == nullptr) return;
  count_tile(step, lookup, shared);
  const int64_t tile = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  int32_t begin = load_global(step.counts + tile * SortTraits::kDigits + threadIdx.x);
  for (int w = 0; w < SortTraits::kWarps; ++w) {
    const int32_t here = load_shared(&shared.counts[w][threadIdx.x]);
    store_shared(&shared.counts[w][threadIdx.x], begin);
    begin += here;
  }
  __syncthreads();
#pragma unroll 2
  for (int round = 0; round < SortTraits::kRounds; ++round) {
    const SortRound places(step, lookup, round);
    const int32_t at = places.count(shared.counts[warp]);
    if (places.peers != 0)
      store_global(step.to + static_cast<int64_t>(blockIdx.y) * step.rows + at, places.place);
  }
}

// Sorts the wanted tables' places and returns where the result lies, [3, N] in `order` [2, 3, N].
inline const int32_t* sort_places(const EmbeddingLookup (&lookups)[3], int64_t rows, int32_t* order,
                                  int32_t* counts, cudaStream_t stream) {
  int64_t largest = 0;
  for (const EmbeddingLookup& lookup : lookups)
    if (lookup.table != nullptr) largest = lookup.table_rows > largest ? lookup.table_rows : largest;
  const int tiles = static_cast<int>((rows + SortTraits::kTile - 1) / SortTraits::kTile);
  const dim3 grid{static_cast<unsigned>(tiles), 3, 1}, block{SortTraits::kThreads, 1, 1};
  SortStep step = {
      {lookups[0], lookups[1], lookups[2]}, static_cast<int32_t>(rows), 0, nullptr, order, counts};
  for (; step.shift == 0 || largest >> step.shift != 0; step.shift += 8) {
    launch(sort_count_kernel, grid, block, sizeof(SortTraits::Shared), stream, step);
    launch(sort_scan_kernel, dim3{1, 3, 1}, block, sizeof(SortTraits::ScanShared), stream, step, tiles);
    launch(sort_place_kernel, grid, block, sizeof(SortTraits::Shared), stream, step);
    step.from = step.to;
    step.to = step.to == order ? order + 3 * rows : order;
  }
  return step.from;
}

}  // namespace glm::cuda
