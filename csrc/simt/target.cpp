// Every call of glm_ext_simt is for the CUDA kernels, on the host: it has no others (simt/kernels.cpp).
#include "binding/target.h"

#include "simt/machine.h"

bool pybind11::detail::type_caster<glm::Target>::load(handle, bool) {
  value.gpu = true;
  return true;
}

namespace glm::cuda {

bool has_wgmma() { return simt::options().hopper; }

DeviceGuard::DeviceGuard(int) : before_(0) {}
DeviceGuard::~DeviceGuard() = default;

}  // namespace glm::cuda
