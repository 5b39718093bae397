// What the ops on matrices share.
#pragma once

#include <cstdint>

namespace glm {

struct Matrix {  // any strides
  const void* data;
  int64_t row_stride, col_stride;
};

// Bias gradients are summed over groups of this many rows, whatever the thread count, and the groups in
// order.
inline constexpr int64_t kSumRows = 384;
inline int64_t sum_groups(int64_t rows) { return (rows + kSumRows - 1) / kSumRows; }

}  // namespace glm
