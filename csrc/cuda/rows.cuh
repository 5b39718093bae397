// Rows of E columns in the hands of teams of warps: what the row-wise kernels share.
//
// A warp takes a tile of 256 columns at a time, 8 of them a lane, in accesses of kPer columns. The fast way
// moves 16 bytes at a time and keeps a row in registers; the general way, for rows that are not aligned or
// too wide, moves single elements and reads a row again for each pass. 256 columns are two chunks of Philox's
// row mapping (core/philox.h): each lane draws the 8 numbers of one counter, and 8 ballots hand every lane
// the bits of its own columns.
#pragma once

#include "core/philox.h"
#include "cuda/run.cuh"

namespace glm::cuda {

inline constexpr int kTileColumns = 256;
inline constexpr int kLaneColumns = kTileColumns / kWarp;

// Columns that lie next to each other in a lane.
template <class T, bool kFast>
inline constexpr int kLaneRun = kFast ? 16 / static_cast<int>(sizeof(T)) : 1;

// Columns that one instruction moves: floats beside 16-bit rows take two for what those do in one.
template <class T, int kPer>
inline constexpr int kMoveColumns =
    kPer * static_cast<int>(sizeof(T)) <= 16 ? kPer : 16 / static_cast<int>(sizeof(T));

// The place in its tile of the lane's i-th column.
template <int kPer>
__device__ __forceinline__ int tile_column(int i, int lane) {
  return (i / kPer * kWarp + lane) * kPer + i % kPer;
}

// The lane's columns of the tile at `first`, as they lie in memory; zeros at and after `width`.
template <class T, int kPer>
struct RawTile {
  static constexpr int kMove = kMoveColumns<T, kPer>;
  Run<T, kMove> run[kLaneColumns / kMove];

  __device__ __forceinline__ void load(const T* row, int first, int width, int lane) {
#pragma unroll
    for (int i = 0; i < kLaneColumns; i += kMove) {
      const int e = first + tile_column<kPer>(i, lane);
      run[i / kMove] = load_run<kMove>(row + e, e < width);
    }
  }
  __device__ __forceinline__ void widen_to(float (&out)[kLaneColumns]) const {
#pragma unroll
    for (int i = 0; i < kLaneColumns; i += kMove) {
      float values[kMove];
      run[i / kMove].widen_to(values);
#pragma unroll
      for (int k = 0; k < kMove; ++k) out[i + k] = values[k];
    }
  }
  __device__ __forceinline__ void narrow_from(const float (&in)[kLaneColumns]) {
#pragma unroll
    for (int i = 0; i < kLaneColumns; i += kMove) {
      float values[kMove];
#pragma unroll
      for (int k = 0; k < kMove; ++k) values[k] = in[i + k];
      run[i / kMove] = narrow_run<T>(values);
    }
  }
  __device__ __forceinline__ void store(T* row, int first, int width, int lane) const {
#pragma unroll
    for (int i = 0; i < kLaneColumns; i += kMove) {
      const int e = first + tile_column<kPer>(i, lane);
      if (e < width) store_run(row + e, run[i / kMove]);
    }
  }
};

template <int kPer, class T>
__device__ __forceinline__ void load_tile(float (&out)[kLaneColumns], const T* row, int first, int width,
                                          int lane) {
  RawTile<T, kPer> tile;
  tile.load(row, first, width, lane);
  tile.widen_to(out);
}

// Stores them rounded to T, and leaves in `values` what was stored.
template <int kPer, class T>
__device__ __forceinline__ void store_tile(T* row, float (&values)[kLaneColumns], int first, int width,
                                           int lane) {
  RawTile<T, kPer> tile;
  tile.narrow_from(values);
  tile.store(row, first, width, lane);
  tile.widen_to(values);
}

// ---- dropout
// -------------------------------------------------------------------------------------------------

struct RowDropout {
  uint64_t seed;
  uint32_t threshold;
  float scale;
  bool active;

  explicit RowDropout(const Dropout& dropout)
      : seed(dropout.seed),
        threshold(dropout.threshold()),
        scale(static_cast<float>(dropout.scale())),
        active(dropout.active()) {}
};

// Bit i: whether the lane's i-th column of the tile at `first` of row n is kept. The whole warp calls this.
template <int kPer>
__device__ __forceinline__ uint32_t keep_bits(const RowDropout& dropout, int64_t n, int first, int lane) {
  const uint32_t counter =
      static_cast<uint32_t>(first / 128 * 16 + lane);  // lanes 16 to 31: the second chunk
  const PhiloxWords words = philox(
      dropout.seed,
      {{counter, static_cast<uint32_t>(n), static_cast<uint32_t>(static_cast<uint64_t>(n) >> 32), 0u}});
  uint32_t bits = 0;
#pragma unroll
  for (int t = 0; t < 8; ++t) {
    const uint32_t number = words.word[t / 2] >> (16 * (t % 2)) & 0xffffu;
    // Bits 0 to 15: columns 16t to 16t + 15 of the first chunk; bits 16 to 31: of the second.
    const uint32_t kept = __ballot_sync(kAllLanes, number < dropout.threshold);
#pragma unroll
    for (int i = 0; i < kLaneColumns; i += kPer) {
      const int column = tile_column<kPer>(i, lane);
      if (column % 128 / 16 == t)
        bits |= (kept >> (column / 128 * 16 + column % 16) & ((1u << kPer) - 1u)) << i;
    }
  }
  return bits;
}

// A dropped value is 0 whatever it held: 0 * NaN would not be.
__device__ __forceinline__ float dropped(float x, uint32_t bits, int i, float scale) {
  return (bits >> i & 1u) != 0 ? x * scale : 0.0f;
}

// ---- teams
// ---------------------------------------------------------------------------------------------------

// A row belongs to a team: as few warps as hold it in registers, kTiles tiles each, at most kMaxTeamWarps.
inline constexpr int kMaxTeamWarps = 16;
inline constexpr int kBlockWarps = 8;  // several narrow rows share a block

struct TeamShape {
  int warps;  // of a team
  int teams;  // of a block
  bool fast;

  TeamShape(int64_t width, int tiles_per_warp, bool aligned) : warps(1) {
    GLM_CHECK(width < (int64_t{1} << 30), "width: expected fewer than 2^30 columns, got ", width);
    const int64_t tiles = (width + kTileColumns - 1) / kTileColumns;
    while (warps < kMaxTeamWarps && warps * tiles_per_warp < tiles) warps *= 2;
    fast = aligned && warps * tiles_per_warp >= tiles;
    teams = fast && warps < kBlockWarps ? kBlockWarps / warps : 1;
  }
  unsigned threads() const { return static_cast<unsigned>(warps * teams * kWarp); }
};

struct Team {
  int warps, index;  // of this team: its size, its number in the block
  int warp, lane;    // of this thread: in the team, in the warp
  int block_warp;

  explicit __device__ __forceinline__ Team(const TeamShape& shape)
      : warps(shape.warps),
        lane(static_cast<int>(threadIdx.x) % kWarp),
        block_warp(static_cast<int>(threadIdx.x) / kWarp) {
    index = block_warp / warps;
    warp = block_warp % warps;
  }

  // Calls body(i, first) for the tiles of this warp: i counts up to kTiles (a constant once unrolled) where
  // the row stays in registers, and is 0 where it does not.
  template <int kTiles, bool kFast, class Body>
  __device__ __forceinline__ void for_tiles(int width, const Body& body) const {
    const int step = warps * kTileColumns;
    int first = warp * kTileColumns;
    if constexpr (kFast) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i, first += step)
        if (first < width) body(i, first);
    } else {
      for (; first < width; first += step) body(0, first);
    }
  }

  // The same, where load(a, first) brings what body(i, a, first) is made of: of kAhead tiles, a < kAhead, before
  // the first body, whose stores would hold later loads up.
  template <int kTiles, bool kFast, int kAhead, class Load, class Body>
  __device__ __forceinline__ void for_loaded_tiles(int width, const Load& load, const Body& body) const {
    static_assert(kTiles % kAhead == 0);
    const int step = warps * kTileColumns;
    int first = warp * kTileColumns;
    if constexpr (kFast) {
#pragma unroll
      for (int i = 0; i < kTiles; i += kAhead, first += kAhead * step) {
#pragma unroll
        for (int a = 0; a < kAhead; ++a) load(a, first + a * step);
#pragma unroll
        for (int a = 0; a < kAhead; ++a)
          if (first + a * step < width) body(i + a, a, first + a * step);
      }
    } else {
      for (; first < width; first += step) {
        load(0, first);
        body(0, 0, first);
      }
    }
  }

  // Sums over the team, for every thread of it, always in the same order. `slots` is shared memory that
  // nobody uses until the whole block has passed another barrier.
  template <int kCount>
  __device__ __forceinline__ void sum(float (&values)[kCount], float (&slots)[kMaxTeamWarps][kCount]) const {
#pragma unroll
    for (int k = 0; k < kCount; ++k)
#pragma unroll
      for (int mask = kWarp / 2; mask > 0; mask /= 2)
        values[k] += __shfl_xor_sync(kAllLanes, values[k], mask);
    if (warps == 1) return;
    if (lane == 0)
#pragma unroll
      for (int k = 0; k < kCount; ++k) store_shared(&slots[block_warp][k], values[k]);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      values[k] = 0.0f;
      for (int w = 0; w < warps; ++w) values[k] += load_shared(&slots[index * warps + w][k]);
    }
  }
};

}  // namespace glm::cuda
