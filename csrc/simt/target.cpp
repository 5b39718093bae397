// Every call of glm_ext_simt is for the CUDA kernels, on the host: it has no others (simt/kernels.cpp).
#include "binding/target.h"

#include "cuda/device.h"
#include "simt/machine.h"

bool pybind11::detail::type_caster<glm::Target>::load(handle, bool) {
  value.gpu = true;
  return true;
}

namespace glm::cuda {

bool has_wgmma() { return simt::options().hopper; }

int64_t shared_bytes_per_block() { return simt::options().shared_bytes(); }

int multiprocessors() { return 2; }  // so few that persistent blocks take several tiles

namespace {
bool ffma_wanted = false;
}
bool uses_ffma() { return ffma_wanted; }
void use_ffma(bool wanted) { ffma_wanted = wanted; }

DeviceGuard::DeviceGuard(int device) : device_(device), before_(device) {}
DeviceGuard::~DeviceGuard() = default;

}  // namespace glm::cuda
