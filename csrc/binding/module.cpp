// glm_ext._C: the kernels, as functions of tensors that the caller has allocated and checked (glm_ext/ops).
#include "binding/register.h"

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "The kernels of glm_ext. Call them through glm_ext.ops, which checks arguments and allocates results.";
  glm::register_info(m);
  glm::register_dropout_add_layer_norm(m);
  glm::register_embedding_2d(m);
  glm::register_gelu_mlp(m);
  glm::register_linear(m);
  glm::register_linear_cross_entropy(m);
  glm::register_span_attention(m);
}
