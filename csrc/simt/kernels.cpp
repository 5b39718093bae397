// The table of kernels that the binding calls (cpu/kernels.h), filled with the CUDA kernels: the binding's
// files serve glm_ext_simt unchanged.
#include "cpu/kernels.h"

#include "cuda/kernels.h"

namespace glm::cpu {
namespace {

template <class Params, void (*kOp)(const Params&, cudaStream_t)>
void run(const Params& params) {
  kOp(params, nullptr);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels table = {
      .isa = "simt",
      .fma_peak = nullptr,
      .dropout_add_layer_norm_forward = run<DropoutAddLayerNormForward, cuda::dropout_add_layer_norm_forward>,
      .dropout_add_layer_norm_backward =
          run<DropoutAddLayerNormBackward, cuda::dropout_add_layer_norm_backward>,
  };
  return table;
}

}  // namespace glm::cpu
