// y = x w^T + b. N rows of x, width E -> O; matrices may have any strides, everything else is contiguous.
#pragma once

#include "core/dtype.h"
#include "ops/matrix.h"

namespace glm {

struct LinearForward {
  DType dtype;
  int64_t rows, width, width_out;  // N, E, O
  Matrix x;                        // [N, E]
  Matrix weight;                   // [O, E]
  const void* bias;                // [O], or null
  void* y;                         // [N, O]
  int threads;
};

// A gradient that is null is not computed.
struct LinearBackward {
  DType dtype;
  int64_t rows, width, width_out;
  Matrix grad_y;      // [N, O]
  Matrix x;           // [N, E]
  Matrix weight;      // [O, E]
  void* sums;         // [sum_groups(N), O] float or double, workspace of grad_bias
  void* grad_x;       // [N, E]
  void* grad_weight;  // [O, E]
  void* grad_bias;    // [O]
  int threads;
};

}  // namespace glm
