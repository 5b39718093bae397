// The table of CPU kernels that the binding looks into (cpu/kernels.h): empty, so that it calls the CUDA
// kernels.
#include "cpu/kernels.h"

namespace glm::cpu {

const Kernels& kernels() {
  static const Kernels none = {.isa = "simt"};
  return none;
}

}  // namespace glm::cpu
