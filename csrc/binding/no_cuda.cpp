// What the binding sees of CUDA in a build without it: no kernel, no device.
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace glm::cuda {

const Kernels& kernels() {
  static const Kernels none = {};
  return none;
}

std::vector<Device> devices() { return {}; }
void use_wgmma(bool) {}
void use_ffma(bool) {}
void limit_shared_bytes_per_block(int64_t) {}

DeviceGuard::DeviceGuard(int device) : device_(device), before_(device) {}
DeviceGuard::~DeviceGuard() = default;

}  // namespace glm::cuda
