// out = dropout(token_table[tokens] + position_table[positions] + block_table[block_positions]): the input
// layer of GLM (Du et al., arXiv 2103.10360, section 2.1). N rows of E columns, all contiguous.
#pragma once

#include "core/dtype.h"
#include "core/philox.h"

namespace glm {

struct EmbeddingLookup {
  const int64_t* ids;  // [N]
  int64_t table_rows;
  void* table;  // [table_rows, E], read by forward; of backward its gradient, or null where none is wanted
  // Backward adds to what another use of the table left there. Else a CPU writes every row of the gradient, and
  // a GPU those that were looked up: it finds zeros.
  bool add = false;
};

// Backward sums the rows of a frequent id in pieces of at least this many, whatever the thread count, and the
// pieces in order.
inline constexpr int64_t kEmbeddingPieceRows = 64;

// Numbers of 16 bits, a bit for each column of a row, in whole chunks of 128 columns.
constexpr int64_t embedding_keep_words(int64_t width) { return (width + 127) / 128 * 8; }

struct Embedding2DForward {
  DType dtype;
  int64_t rows, width;         // N, E
  EmbeddingLookup lookups[3];  // tokens, positions, block positions
  void* out;                   // [N, E]
  Dropout dropout;
  int threads;
};

struct Embedding2DBackward {
  DType dtype;
  int64_t rows, width;
  EmbeddingLookup lookups[3];
  const void* grad;  // [N, E]
  int64_t* order;    // scratch [3, N]
  int64_t* first;    // scratch [sum of (table_rows + 2)]
  void* pieces;      // scratch [N / kEmbeddingPieceRows, E] float; double for f64
  uint16_t* keep;    // scratch [N, embedding_keep_words(E)]: a bit for each element that dropout kept
  void* workspace;   // on a GPU instead of these four: EmbeddingGpuWorkspace
  Dropout dropout;
  int threads;
};

// What backward on a GPU works in: offsets in bytes.
struct EmbeddingGpuWorkspace {
  static constexpr int64_t kSortTile = 2048;  // places that one block sorts
  static constexpr int64_t kDigits = 256;     // the ids are sorted by 8 bits at a time
  static constexpr int64_t kTile = 256;       // columns that one warp sums

  int64_t slots, sort_tiles, column_tiles;
  int64_t
      order;  // int32 [2, 3, N]: the places in the order of their ids, before a step of the sort and after
  int64_t counts;  // int32 [3, sort_tiles, kDigits]
  int64_t
      pieces;  // float [3, slots, 2, E]: sums of slots of kEmbeddingPieceRows places, where an id has several
  int64_t keep;  // a bit for each element of N x E: those that dropout kept, drawn once for the three tables
  int64_t size;

  EmbeddingGpuWorkspace(int64_t rows, int64_t width)
      : slots((rows + kEmbeddingPieceRows - 1) / kEmbeddingPieceRows),
        sort_tiles((rows + kSortTile - 1) / kSortTile),
        column_tiles((width + kTile - 1) / kTile),
        order(0),
        counts(round_up(2 * 3 * rows * 4)),
        pieces(counts + 3 * sort_tiles * kDigits * 4),
        keep(pieces + round_up(3 * slots * 2 * width * 4)),
        size(keep + round_up(rows * column_tiles * kTile / 8)) {}

  static int64_t round_up(int64_t bytes) { return (bytes + 255) / 256 * 256; }
};

// Where an id lies outside its table: place `row` of lookup `which`. On a CPU both functions look for one
// before they read or write any table, and do nothing more when they find it. On a GPU its row of out is NaN,
// and its gradient goes nowhere.
struct EmbeddingFault {
  int which = -1;
  int64_t row = 0;
};

}  // namespace glm
