// How the attention kernels read and write rows of the tensors' dtype. They multiply P and sum in C, and are
// compiled for float and double, or for pairs of bf16 (cpu/packed.h); these few functions for each dtype.
#pragma once

#include "core/dispatch.h"
#include "cpu/attention/layout.h"
#include "cpu/packed.h"

namespace glm::cpu::GLM_ISA {

// Rows of a tensor: row i begins at data + i * stride elements; those outside [first, last) are never touched
// and read as zeros. Row 0 is where a tile's row 0 is or would be.
struct RowRange {
  const void* data;
  int64_t stride;
  int64_t first, last;
};

template <class P>
struct Storage {
  using C = SumOf<P>;

  size_t bytes;  // of an element

  // out[row][row_steps(depth)] = the first `count` rows, packed along their depth, zeros past it.
  void (*read_rows)(const RowRange& rows, int64_t count, int64_t depth, P* out);
  // out[steps of count][padded(depth)] = the same rows packed along each other: of pairs two in one row.
  void (*read_columns)(const RowRange& rows, int64_t count, int64_t depth, P* out);
  // A query panel (tile.h): panel[row_steps(depth)][kPanelRows] = factor * rows, transposed (query_factor); and
  // where `copy` is not null, the row of each slot as it is, copied as by read_columns.
  void (*read_panel)(const RowRange& rows, int64_t depth, C factor, P* panel, P* copy);
  // The reverse, of sums; row i of a panel is multiplied by its slot's factor.
  void (*write_rows)(const C* in, int64_t depth, C factor, const RowRange& rows);
  void (*write_panel)(const C* panel, int64_t depth, const C* factor, const RowRange& rows);

  // Rows [i, ...) of head h of sequence b, of which [first, last) exist.
  RowRange range(const AttentionRows& x, int64_t b, int64_t h, int64_t i, int64_t first, int64_t last) const {
    return {at(x, b, h, i), x.row, first, last};
  }
  void* at(const AttentionRows& x, int64_t b, int64_t h, int64_t i) const {
    return static_cast<char*>(x.data) + x.offset(b, h, i) * static_cast<int64_t>(bytes);
  }
};

template <class P>
int64_t row_steps(int64_t depth) {
  return padded(steps_of<P>(depth));
}

const Storage<float>& storage(DType dtype, Type<float>);
const Storage<double>& storage(DType dtype, Type<double>);
const Storage<Pair>& storage(DType dtype, Type<Pair>);

}  // namespace glm::cpu::GLM_ISA
