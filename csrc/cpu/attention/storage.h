// How the attention kernels read and write rows of the tensors' dtype. They compute in C alone, so they are
// compiled for float and double only; these few functions are compiled for each dtype.
#pragma once

#include "core/dispatch.h"
#include "cpu/simd.h"
#include "ops/span_attention.h"

namespace glm::cpu::GLM_ISA {

// Rows of a tensor: row i begins at data + i * stride elements; those outside [first, last) are never touched
// and read as zeros. Row 0 is where a tile's row 0 is or would be.
struct RowRange {
  const void* data;
  int64_t stride;
  int64_t first, last;
};

template <class C>
struct Storage {
  size_t bytes;  // of an element

  // out[row][padded] = the first `count` rows, zeros past `depth`.
  void (*read_rows)(const RowRange& rows, int64_t count, int64_t depth, int64_t padded, C* out);
  // A query panel (tile.h): panel[depth][kPanelRows] = factor * rows, transposed; and where `copy` is not
  // null, copy[slot][padded] = the row of each slot as it is.
  void (*read_panel)(const RowRange& rows, int64_t depth, int64_t padded, C factor, C* panel, C* copy);
  // The reverse of the first two; row i of a panel is multiplied by its slot's factor.
  void (*write_rows)(const C* in, int64_t padded, int64_t depth, C factor, const RowRange& rows);
  void (*write_panel)(const C* panel, int64_t depth, const C* factor, const RowRange& rows);

  // Rows [i, ...) of head h of sequence b, of which [first, last) exist.
  RowRange range(const AttentionRows& x, int64_t b, int64_t h, int64_t i, int64_t first, int64_t last) const {
    return {at(x, b, h, i), x.row, first, last};
  }
  void* at(const AttentionRows& x, int64_t b, int64_t h, int64_t i) const {
    return static_cast<char*>(x.data) + x.offset(b, h, i) * static_cast<int64_t>(bytes);
  }
};

const Storage<float>& storage(DType dtype, Type<float>);
const Storage<double>& storage(DType dtype, Type<double>);

}  // namespace glm::cpu::GLM_ISA
