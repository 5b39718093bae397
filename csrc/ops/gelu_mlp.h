// y = gelu(x w1^T + b1) w2^T + b2. N rows of x, widths E -> F -> O; matrices may have any strides, everything
// else is contiguous.
#pragma once

#include <algorithm>

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
  Matrix x;         // [N, E]
  Matrix w1;        // [F, E]
  const void* b1;   // [F], or null
  Matrix w2;        // [O, F]
  const void* b2;   // [O], or null
  void* pre;        // [N, F], x w1^T + b1
  void* post;       // [N, F], gelu(pre); null: computed while y is, and not kept
  void* y;          // [N, O]; null: only pre is wanted
  void* workspace;  // on a GPU, where post is null and y is not: [N, F]
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
  void* grad_pre;    // [N, F], workspace, may be pre; not used when only w2 and b2 have gradients
  void* sums;        // [sum_groups(N), max(F, O)] float or double, workspace of the bias gradients
  void* workspace;   // on a GPU, instead of sums: GeluMlpGpuWorkspace
  void* grad_x;      // [N, E]
  void* grad_w1;     // [F, E]
  void* grad_b1;     // [F]
  void* grad_w2;     // [O, F]
  void* grad_b2;     // [O]
  int threads;
};

// On a GPU by row tiles of its matrix product.
inline constexpr int64_t kGeluMlpTileRows = 128;
inline int64_t gelu_mlp_row_tiles(int64_t rows) { return (rows + kGeluMlpTileRows - 1) / kGeluMlpTileRows; }

// What backward on a GPU works in, in bytes: sums [row tiles, max(F, O)] float, then post [N, F] where
// forward did not keep it.
struct GeluMlpGpuWorkspace {
  int64_t post, size;

  explicit GeluMlpGpuWorkspace(const GeluMlpShape& s, bool keeps_post = false)
      : post((gelu_mlp_row_tiles(s.rows) * std::max(s.hidden, s.width_out) * 4 + 255) / 256 * 256),
        size(post + (keeps_post ? 0 : s.rows * s.hidden * (s.dtype == DType::f32 ? 4 : 2))) {}
};

// ---- where a library computes the products of a GPU: what lies between them, [N, F] contiguous
// -----------------------------------------------------------------------------------------------------

// post = gelu(pre).
struct GeluMlpGelu {
  DType dtype;
  Gelu kind;
  int64_t rows, hidden;
  const void* pre;
  void* post;
};

// grad_pre = grad_post gelu'(pre), grad_bias its sum over rows, post = gelu(pre). grad_pre may be grad_post.
struct GeluMlpGeluGrad {
  DType dtype;
  Gelu kind;
  int64_t rows, hidden;
  const void* grad_post;
  const void* pre;
  void* grad_pre;
  void* post;       // null: not wanted
  void* sums;       // [row tiles, F] float
  void* grad_bias;  // [F]; null: not wanted, nor sums
};

// out = sum over rows of values [N, C].
struct GeluMlpSumRows {
  DType dtype;
  int64_t rows, columns;
  Matrix values;
  void* sums;  // [row tiles, C] float
  void* out;   // [C]
};

}  // namespace glm
