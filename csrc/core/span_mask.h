// GLM's attention mask. Each query row sees one interval of keys, so that causal (prefix 0), full (prefix =
// length), left and right padding and packing are one kernel:
//
//   row i, at place r = row_offset + i, sees keys   begin <= j < min(length, max(prefix, r + 1))
//
// Part A is the prefix: it sees itself both ways. Part B sees all of A and its own past.
#pragma once

#include <cstdint>

#include "core/check.h"

namespace glm {

struct SpanMask {
  int64_t prefix;      // a: length of Part A
  int64_t length;      // keys at and after this are padding
  int64_t begin;       // keys before this are padding
  int64_t row_offset;  // place of query row 0; length - S when decoding with a cache

  GLM_HD static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
  GLM_HD static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

  // One past the last key that row i sees; at or below `begin` when it sees nothing. Grows with i.
  GLM_HD int64_t row_end(int64_t i) const { return min(length, max(prefix, row_offset + i + 1)); }

  // For rows [m0, m1): keys of [begin, full_end) are seen by every row, keys at and after seen_end by none.
  GLM_HD int64_t full_end(int64_t m0) const { return row_end(m0); }
  GLM_HD int64_t seen_end(int64_t m1) const { return row_end(m1 - 1); }

  // For keys [n0, n1): the first row that sees any of them, and the first row that sees all of them up to
  // `length`.
  GLM_HD int64_t first_row(int64_t n0) const { return n0 < prefix ? 0 : max(0, n0 - row_offset); }
  GLM_HD int64_t first_full_row(int64_t n1) const { return n1 <= prefix ? 0 : max(0, n1 - 1 - row_offset); }

  // Visible (query, key) pairs of rows [0, rows): what the attention FLOPs are counted from.
  GLM_HD int64_t pairs(int64_t rows) const {
    int64_t sum = 0;
    for (int64_t i = 0; i < rows; ++i) sum += max(0, row_end(i) - begin);
    return sum;
  }
};

}  // namespace glm
