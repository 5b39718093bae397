// y = gelu(x w1^T + b1) w2^T + b2. N rows of x, widths E -> F -> O; matrices may have any strides, everything
// else is contiguous.
#pragma once

#include "core/dtype.h"
#include "core/gelu.h"
#include "ops/matrix.h"

namespace glm {

struct GeluMlpShape {
  DType dtype;
  Gelu kind;
  int64_t rows, width, hidden, width_out;  // N, E, F, O
};

struct GeluMlpForward {
  GeluMlpShape shape;
  Matrix x;        // [N, E]
  Matrix w1;       // [F, E]
  const void* b1;  // [F], or null
  Matrix w2;       // [O, F]
  const void* b2;  // [O], or null
  void* pre;       // [N, F], x w1^T + b1
  void* post;      // [N, F], gelu(pre); null: computed while y is, and not kept
  void* y;         // [N, O]; null: only pre is wanted
  int threads;
};

// A gradient that is null is not computed.
struct GeluMlpBackward {
  GeluMlpShape shape;
  Matrix grad_y;     // [N, O]
  Matrix x;          // [N, E]
  Matrix w1;         // [F, E]
  Matrix w2;         // [O, F]
  const void* pre;   // [N, F]
  const void* post;  // [N, F]; null: computed from pre
  void* grad_pre;    // [N, F], workspace; not used when only w2 and b2 have gradients
  void* sums;        // [sum_groups(N), max(F, O)] float or double, workspace of the bias gradients
  void* grad_x;      // [N, E]
  void* grad_w1;     // [F, E]
  void* grad_b1;     // [F]
  void* grad_w2;     // [O, F]
  void* grad_b2;     // [O]
  int threads;
};

}  // namespace glm
