// The GPUs of this machine.
#pragma once

#include <string>
#include <vector>

namespace glm::cuda {

struct Device {
  std::string name;
  int major, minor;  // compute capability
};

// Empty where there is no GPU, or no driver that this build can talk to.
std::vector<Device> devices();

// Whether the current device runs the kernels of warpgroups (cuda/wgmma.cuh): it can, this build has them, and
// they are wanted. No card has proven them yet, so they must be asked for: GLM_WGMMA=1, or use_wgmma(true).
bool has_wgmma();
void use_wgmma(bool);

// Whether attention multiplies floats by FFMA (attention/product_ffma.cuh) rather than by 3xTF32: where asked
// for, by GLM_FFMA=1 or use_ffma(true).
bool uses_ffma();
void use_ffma(bool);

// Makes a device the current one, and puts back the one before.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_;
};

}  // namespace glm::cuda
