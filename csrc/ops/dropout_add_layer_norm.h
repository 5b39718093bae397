// new_residual = residual + dropout(x);  normed = (new_residual - mean) * rstd * weight + bias, over the last
// dimension. Layer normalisation: Ba et al., arXiv 1607.06450, equation 4. N rows of E columns, all
// contiguous.
#pragma once

#include "core/dtype.h"
#include "core/philox.h"

namespace glm {

struct DropoutAddLayerNormForward {
  DType dtype;
  int64_t rows, width;   // N, E
  const void* x;         // [N, E]
  const void* residual;  // [N, E]
  const void* weight;    // [E]
  const void* bias;      // [E]
  void* normed;          // [N, E]
  void* new_residual;    // [N, E]
  void* mean;            // [N] float; double for f64
  void* rstd;            // [N] likewise
  double eps;
  Dropout dropout;
  int threads;
};

struct DropoutAddLayerNormBackward {
  DType dtype;
  int64_t rows, width;
  const void* grad_normed;        // [N, E]
  const void* grad_new_residual;  // [N, E], or null: no gradient came along the residual stream
  const void* new_residual;       // [N, E]
  const void* weight;             // [E]
  const void* mean;               // [N]
  const void* rstd;               // [N]
  // Any of these is null where it is not wanted; the last three come and go together.
  void* grad_x;         // [N, E]; without dropout it would equal grad_residual, and is null
  void* grad_residual;  // [N, E]
  void* grad_weight;    // [E]
  void* grad_bias;      // [E]
  void* workspace;      // [partials, 2, E] float or double, see dropout_add_layer_norm_partials
  Dropout dropout;
  int threads;
};

// Rows are summed in this many groups, whatever the thread count, and the groups in order.
inline int64_t dropout_add_layer_norm_partials(int64_t rows) {
  const int64_t groups = (rows + 15) / 16;
  return groups < 512 ? groups : 512;
}

}  // namespace glm
