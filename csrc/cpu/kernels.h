// The table of CPU kernels: one per instruction set, filled by cpu/kernels.cpp, one in force
// (cpu/dispatch.cpp).
#pragma once

#include <string>
#include <vector>

#include "ops/dropout_add_layer_norm.h"
#include "ops/embedding_2d.h"
#include "ops/gelu_mlp.h"
#include "ops/linear.h"
#include "ops/linear_cross_entropy.h"
#include "ops/span_attention.h"

namespace glm::cpu {

struct Kernels {
  const char* isa;
  double (*fma_peak)(int threads);  // GFLOP/s, float
  void (*dropout_add_layer_norm_forward)(const DropoutAddLayerNormForward&);
  void (*dropout_add_layer_norm_backward)(const DropoutAddLayerNormBackward&);
  EmbeddingFault (*embedding_2d_forward)(const Embedding2DForward&);
  EmbeddingFault (*embedding_2d_backward)(const Embedding2DBackward&);
  void (*gelu_mlp_forward)(const GeluMlpForward&);
  void (*gelu_mlp_backward)(const GeluMlpBackward&);
  void (*linear_forward)(const LinearForward&);
  void (*linear_backward)(const LinearBackward&);
  void (*linear_cross_entropy)(const LinearCrossEntropy&);
  void (*span_attention_forward)(const SpanAttentionForward&);
  void (*span_attention_backward)(const SpanAttentionBackward&);
};

// The table in force: the best instruction set that this machine supports, or the one that GLM_FORCE_ISA
// names. Throws when GLM_FORCE_ISA names one that is not built or not supported.
const Kernels& kernels();

std::vector<std::string> isas_built();
std::vector<std::string> isas_supported();  // built, and this machine runs them

}  // namespace glm::cpu
