// What each file of this folder gives to the table, once per instruction set.
#pragma once

#include "ops/dropout_add_layer_norm.h"
#include "ops/embedding_2d.h"
#include "ops/gelu_mlp.h"
#include "ops/linear.h"
#include "ops/linear_cross_entropy.h"
#include "ops/span_attention.h"

namespace glm::cpu::GLM_ISA {

double fma_peak(int threads);

void dropout_add_layer_norm_forward(const DropoutAddLayerNormForward&);
void dropout_add_layer_norm_backward(const DropoutAddLayerNormBackward&);
EmbeddingFault embedding_2d_forward(const Embedding2DForward&);
EmbeddingFault embedding_2d_backward(const Embedding2DBackward&);
void gelu_mlp_forward(const GeluMlpForward&);
void gelu_mlp_backward(const GeluMlpBackward&);
void linear_forward(const LinearForward&);
void linear_backward(const LinearBackward&);
void linear_cross_entropy(const LinearCrossEntropy&);
void span_attention_forward(const SpanAttentionForward&);
void span_attention_backward(const SpanAttentionBackward&);

}  // namespace glm::cpu::GLM_ISA
