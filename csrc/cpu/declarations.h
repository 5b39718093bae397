// What each file of this folder gives to the table, once per instruction set.
#pragma once

#include "ops/dropout_add_layer_norm.h"
#include "ops/gelu_mlp.h"

namespace glm::cpu::GLM_ISA {

double fma_peak(int threads);

void dropout_add_layer_norm_forward(const DropoutAddLayerNormForward&);
void dropout_add_layer_norm_backward(const DropoutAddLayerNormBackward&);
void gelu_mlp_forward(const GeluMlpForward&);
void gelu_mlp_backward(const GeluMlpBackward&);

}  // namespace glm::cpu::GLM_ISA
