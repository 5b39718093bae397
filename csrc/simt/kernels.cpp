// The table of kernels that the binding calls (cpu/kernels.h), filled with the CUDA kernels: the binding's
// files serve glm_ext_simt unchanged.
#include "cpu/kernels.h"

#include "cuda/kernels.h"

namespace glm::cpu {
namespace {

template <auto kOp>
struct OnHost;
template <class Result, class Params, Result (*kOp)(const Params&, cudaStream_t)>
struct OnHost<kOp> {
  static Result run(const Params& params) { return kOp(params, nullptr); }
};

}  // namespace

const Kernels& kernels() {
  static const Kernels table = {
      .isa = "simt",
      .fma_peak = nullptr,
      .dropout_add_layer_norm_forward = OnHost<cuda::dropout_add_layer_norm_forward>::run,
      .dropout_add_layer_norm_backward = OnHost<cuda::dropout_add_layer_norm_backward>::run,
      .embedding_2d_forward =
          [](const Embedding2DForward& params) {
            cuda::embedding_2d_forward(params, nullptr);
            return EmbeddingFault{};  // on a GPU a fault is a row of NaN
          },
      .embedding_2d_backward =
          [](const Embedding2DBackward& params) {
            cuda::embedding_2d_backward(params, nullptr);
            return EmbeddingFault{};
          },
      .gelu_mlp_forward = OnHost<cuda::gelu_mlp_forward>::run,
      .gelu_mlp_backward = OnHost<cuda::gelu_mlp_backward>::run,
      .linear_cross_entropy = OnHost<cuda::linear_cross_entropy>::run,
      .span_attention_forward = OnHost<cuda::span_attention_forward>::run,
      .span_attention_backward = OnHost<cuda::span_attention_backward>::run,
  };
  return table;
}

}  // namespace glm::cpu
