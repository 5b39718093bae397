// Compiled once per instruction set: the table of that set's kernels.
#include "cpu/kernels.h"

#include "cpu/declarations.h"

namespace glm::cpu::GLM_ISA {

#define GLM_STRING(x) #x
#define GLM_EXPAND_STRING(x) GLM_STRING(x)

extern const Kernels kKernels;
const Kernels kKernels = {
    .isa = GLM_EXPAND_STRING(GLM_ISA),
    .fma_peak = fma_peak,
    .dropout_add_layer_norm_forward = dropout_add_layer_norm_forward,
    .dropout_add_layer_norm_backward = dropout_add_layer_norm_backward,
    .embedding_2d_forward = embedding_2d_forward,
    .embedding_2d_backward = embedding_2d_backward,
    .gelu_mlp_forward = gelu_mlp_forward,
    .gelu_mlp_backward = gelu_mlp_backward,
    .linear_forward = linear_forward,
    .linear_backward = linear_backward,
    .linear_cross_entropy = linear_cross_entropy,
    .span_attention_forward = span_attention_forward,
    .span_attention_backward = span_attention_backward,
};

}  // namespace glm::cpu::GLM_ISA
