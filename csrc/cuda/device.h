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

// Whether the current device runs the kernels of warpgroups (cuda/wgmma.cuh), and this build has them.
bool has_wgmma();

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
