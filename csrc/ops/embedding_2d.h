// out = dropout(token_table[tokens] + position_table[positions] + block_table[block_positions]): the input
// layer of GLM (Du et al., arXiv 2103.10360, section 2.1). N rows of E columns, all contiguous.
#pragma once

#include "core/dtype.h"
#include "core/philox.h"

namespace glm {

struct EmbeddingLookup {
  const int64_t* ids;  // [N]
  int64_t table_rows;
  void*
      table;  // [table_rows, E]: read by forward; backward writes its gradient into zeros, unless it is null
};

// Backward sums the rows of a frequent id in pieces of at least this many, whatever the thread count, and the
// pieces in order.
inline constexpr int64_t kEmbeddingPieceRows = 64;

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
  Dropout dropout;
  int threads;
};

// Where an id lies outside its table: place `row` of lookup `which`. Both functions look for one before they
// read or write any table, and do nothing more when they find it.
struct EmbeddingFault {
  int which = -1;
  int64_t row = 0;
};

}  // namespace glm
