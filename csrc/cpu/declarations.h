// What each file of this folder gives to the table, once per instruction set.
#pragma once

#include "ops/dropout_add_layer_norm.h"

namespace glm::cpu::GLM_ISA {

double fma_peak(int threads);

void dropout_add_layer_norm_forward(const DropoutAddLayerNormForward&);
void dropout_add_layer_norm_backward(const DropoutAddLayerNormBackward&);

}  // namespace glm::cpu::GLM_ISA
