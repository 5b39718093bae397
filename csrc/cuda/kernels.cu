// The table of the CUDA kernels: what the binding calls for tensors on a GPU. glm_ext/ops/_cuda.py says which
// of them serve which dtypes.
#include "cuda/kernels.h"

namespace glm::cuda {

const Kernels& kernels() {
  static const Kernels table = {
      .dropout_add_layer_norm_forward = dropout_add_layer_norm_forward,
      .dropout_add_layer_norm_backward = dropout_add_layer_norm_backward,
      .embedding_2d_forward = embedding_2d_forward,
      .embedding_2d_backward = embedding_2d_backward,
      .gelu_mlp_forward = gelu_mlp_forward,
      .gelu_mlp_backward = gelu_mlp_backward,
      .gelu_mlp_gelu = gelu_mlp_gelu,
      .gelu_mlp_gelu_grad = gelu_mlp_gelu_grad,
      .gelu_mlp_sum_rows = gelu_mlp_sum_rows,
      .linear_cross_entropy = linear_cross_entropy,
      .span_attention_forward = span_attention_forward,
      .span_attention_backward = span_attention_backward,
      .span_attention_forward_workspace = span_attention_forward_workspace,
      .span_attention_backward_workspace = span_attention_backward_workspace,
  };
  return table;
}

}  // namespace glm::cuda
