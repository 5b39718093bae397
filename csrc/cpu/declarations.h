// What each file of this folder gives to the table, once per instruction set.
#pragma once

#include "ops/dropout_add_layer_norm.h"
#include "ops/span_attention.h"

namespace glm::cpu::GLM_ISA {

void dropout_add_layer_norm_forward(const DropoutAddLayerNormForward&);
void dropout_add_layer_norm_backward(const DropoutAddLayerNormBackward&);
void span_attention_forward(const SpanAttentionForward&);
void span_attention_backward(const SpanAttentionBackward&);

}  // namespace glm::cpu::GLM_ISA
