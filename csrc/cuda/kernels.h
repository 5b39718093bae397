// The ops on a GPU. Each takes the parameters of its CPU twin (csrc/ops), pointers to device memory, and the
// stream that it works on: no allocation, no synchronisation, no other stream. float32, bfloat16, float16.
#pragma once

#include "ops/dropout_add_layer_norm.h"
#include "ops/embedding_2d.h"
#include "ops/gelu_mlp.h"
#include "ops/linear_cross_entropy.h"
#include "ops/span_attention.h"

typedef struct CUstream_st* cudaStream_t;  // as in <cuda_runtime.h>, which includers need not have

namespace glm::cuda {

void dropout_add_layer_norm_forward(const DropoutAddLayerNormForward&, cudaStream_t);
void dropout_add_layer_norm_backward(const DropoutAddLayerNormBackward&, cudaStream_t);
void embedding_2d_forward(const Embedding2DForward&, cudaStream_t);
void embedding_2d_backward(const Embedding2DBackward&, cudaStream_t);
void gelu_mlp_forward(const GeluMlpForward&, cudaStream_t);
void gelu_mlp_backward(const GeluMlpBackward&, cudaStream_t);
void gelu_mlp_gelu(const GeluMlpGelu&, cudaStream_t);
void gelu_mlp_gelu_grad(const GeluMlpGeluGrad&, cudaStream_t);
void gelu_mlp_sum_rows(const GeluMlpSumRows&, cudaStream_t);
void linear_cross_entropy(const LinearCrossEntropy&, cudaStream_t);
void span_attention_forward(const SpanAttentionForward&, cudaStream_t);
void span_attention_backward(const SpanAttentionBackward&, cudaStream_t);
// Floats of workspace. They depend on sizes alone, and on cu_seqlens being there.
int64_t span_attention_forward_workspace(const SpanAttention&);
int64_t span_attention_backward_workspace(const SpanAttention&, GradQuery);

// Those that this build has; null: none.
struct Kernels {
  void (*dropout_add_layer_norm_forward)(const DropoutAddLayerNormForward&, cudaStream_t);
  void (*dropout_add_layer_norm_backward)(const DropoutAddLayerNormBackward&, cudaStream_t);
  void (*embedding_2d_forward)(const Embedding2DForward&, cudaStream_t);
  void (*embedding_2d_backward)(const Embedding2DBackward&, cudaStream_t);
  void (*gelu_mlp_forward)(const GeluMlpForward&, cudaStream_t);
  void (*gelu_mlp_backward)(const GeluMlpBackward&, cudaStream_t);
  void (*gelu_mlp_gelu)(const GeluMlpGelu&, cudaStream_t);
  void (*gelu_mlp_gelu_grad)(const GeluMlpGeluGrad&, cudaStream_t);
  void (*gelu_mlp_sum_rows)(const GeluMlpSumRows&, cudaStream_t);
  void (*linear_cross_entropy)(const LinearCrossEntropy&, cudaStream_t);
  void (*span_attention_forward)(const SpanAttentionForward&, cudaStream_t);
  void (*span_attention_backward)(const SpanAttentionBackward&, cudaStream_t);
  int64_t (*span_attention_forward_workspace)(const SpanAttention&);
  int64_t (*span_attention_backward_workspace)(const SpanAttention&, GradQuery);
};
const Kernels& kernels();

}  // namespace glm::cuda
