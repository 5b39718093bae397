// What each file of this folder gives to the table, once per instruction set.
#pragma once

#include "ops/dropout_add_layer_norm.h"
#include "ops/linear_cross_entropy.h"

namespace glm::cpu::GLM_ISA {

void dropout_add_layer_norm_forward(const DropoutAddLayerNormForward&);
void dropout_add_layer_norm_backward(const DropoutAddLayerNormBackward&);
void linear_cross_entropy(const LinearCrossEntropy&);

}  // namespace glm::cpu::GLM_ISA
