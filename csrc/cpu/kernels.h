// The table of CPU kernels: one per instruction set, filled by cpu/kernels.cpp, one in force
// (cpu/dispatch.cpp).
#pragma once

#include <string>
#include <vector>

#include "ops/dropout_add_layer_norm.h"
#include "ops/gelu_mlp.h"

namespace glm::cpu {

struct Kernels {
  const char* isa;
  double (*fma_peak)(int threads);  // GFLOP/s, float
  void (*dropout_add_layer_norm_forward)(const DropoutAddLayerNormForward&);
  void (*dropout_add_layer_norm_backward)(const DropoutAddLayerNormBackward&);
  void (*gelu_mlp_forward)(const GeluMlpForward&);
  void (*gelu_mlp_backward)(const GeluMlpBackward&);
};

// The table in force: the best instruction set that this machine supports, or the one that GLM_FORCE_ISA
// names. Throws when GLM_FORCE_ISA names one that is not built or not supported.
const Kernels& kernels();

std::vector<std::string> isas_built();
std::vector<std::string> isas_supported();  // built, and this machine runs them

}  // namespace glm::cpu
