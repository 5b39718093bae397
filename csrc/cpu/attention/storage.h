// How the attention kernels read and write rows of the tensors' dtype. They compute in C alone, so they are
// compiled for float and double only; these few functions are compiled for each dtype.
#pragma once

#include "core/dispatch.h"
#include "cpu/simd.h"
#include "ops/span_attention.h"

namespace glm::cpu::GLM_ISA {

template <class C>
struct Storage {
  size_t bytes;  // of an element

  // A row of `depth` elements into `padded` of C, the rest zero; null reads as zeros.
  void (*read_row)(const void* row, int64_t depth, int64_t padded, C* out);
  void (*write_row)(const C* row, int64_t depth, C factor, void* out);
  // Rows [first, last) of a panel's kPanelRows, transposed to panel[depth][kPanelRows] (tile.h) and scaled; the
  // other rows are zero. `rows` is where the panel's row 0 is or would be.
  void (*read_panel)(const void* rows, int64_t row_stride, int64_t first, int64_t last, int64_t depth, C factor,
                     C* panel);
  // The panel's first `count` rows, each times its slot's factor.
  void (*write_panel)(const C* panel, const C* factor, int64_t count, int64_t depth, void* rows,
                      int64_t row_stride);
  C (*dot)(const void* a, const void* b, int64_t depth);

  const void* at(const AttentionRows& x, int64_t b, int64_t h, int64_t i) const {
    return static_cast<const char*>(x.data) + x.offset(b, h, i) * static_cast<int64_t>(bytes);
  }
  void* at_mutable(const AttentionRows& x, int64_t b, int64_t h, int64_t i) const {
    return const_cast<void*>(at(x, b, h, i));
  }
};

const Storage<float>& storage(DType dtype, Type<float>);
const Storage<double>& storage(DType dtype, Type<double>);

}  // namespace glm::cpu::GLM_ISA
