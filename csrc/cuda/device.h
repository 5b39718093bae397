// The GPUs of this machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace glm::cuda {

struct Device {
  std::string name;
  int major, minor;      // compute capability
  int64_t shared_bytes;  // as shared_bytes_per_block
};

// Empty where there is no GPU, or no driver that this build can talk to.
std::vector<Device> devices();

// Whether the current device runs the kernels of warpgroups (cuda/wgmma.cuh): it can, this build has them, and
// they are wanted. No card has proven them yet, so they must be asked for: GLM_WGMMA=1, or use_wgmma(true).
bool has_wgmma();
void use_wgmma(bool);

// Bytes of shared memory that a block of the current device can have: 163 KB on sm_80, 227 KB on sm_90 and
// sm_100, 99 KB on sm_86, sm_89 and sm_120.
int64_t shared_bytes_per_block();
// No more than so many from now on: a large card's tests of what smaller ones run.
void limit_shared_bytes_per_block(int64_t);

int multiprocessors();  // of the current device

// Whether attention multiplies floats by FFMA (attention/product_ffma.cuh) rather than by 3xTF32: where asked
// for, by GLM_FFMA=1 or use_ffma(true).
bool uses_ffma();
void use_ffma(bool);

// Makes a device the current one, and puts back the one before. Where they are the same it touches nothing: to set a
// device is to make a context on it.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_, before_;
};

}  // namespace glm::cuda
