// Each op registers its functions in a file of its own.
#pragma once

#include <pybind11/pybind11.h>

namespace glm {

void register_info(pybind11::module_& m);
void register_dropout_add_layer_norm(pybind11::module_& m);
void register_embedding_2d(pybind11::module_& m);
void register_gelu_mlp(pybind11::module_& m);
void register_linear(pybind11::module_& m);
void register_linear_cross_entropy(pybind11::module_& m);
void register_span_attention(pybind11::module_& m);

}  // namespace glm
