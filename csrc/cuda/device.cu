#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "cuda/check.cuh"
#include "cuda/device.h"

namespace glm::cuda {

std::vector<Device> devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {  // no driver, or one older than this runtime
    cudaGetLastError();
    return {};
  }
  std::vector<Device> found;
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties;
    GLM_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
    found.push_back({properties.name, properties.major, properties.minor,
                     static_cast<int64_t>(properties.sharedMemPerBlockOptin)});
  }
  return found;
}

namespace {

bool is_set(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && std::string_view(value) == "1";
}

std::atomic<bool>& wants_wgmma() {
  static std::atomic<bool> wanted = is_set("GLM_WGMMA");
  return wanted;
}

std::atomic<bool>& wants_ffma() {
  static std::atomic<bool> wanted = is_set("GLM_FFMA");
  return wanted;
}

std::atomic<int64_t>& shared_limit() {
  static std::atomic<int64_t> bytes = std::numeric_limits<int64_t>::max();
  return bytes;
}

int attribute(cudaDeviceAttr name) {  // of the current device
  int device = 0, value = 0;
  GLM_CUDA_CHECK(cudaGetDevice(&device));
  GLM_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, device));
  return value;
}

}  // namespace

bool has_wgmma() {
#if defined(GLM_HAVE_SM90A)
  if (!wants_wgmma()) return false;
  return attribute(cudaDevAttrComputeCapabilityMajor) == 9;
#else
  return false;
#endif
}

void use_wgmma(bool wanted) { wants_wgmma() = wanted; }

int64_t shared_bytes_per_block() {
  return std::min<int64_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), shared_limit());
}

void limit_shared_bytes_per_block(int64_t bytes) { shared_limit() = bytes; }

int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }

bool uses_ffma() { return wants_ffma(); }

void use_ffma(bool wanted) { wants_ffma() = wanted; }

DeviceGuard::DeviceGuard(int device) : device_(device) {
  GLM_CUDA_CHECK(cudaGetDevice(&before_));
  if (device != before_) GLM_CUDA_CHECK(cudaSetDevice(device));
}

DeviceGuard::~DeviceGuard() {
  if (device_ != before_) cudaSetDevice(before_);
}

}  // namespace glm::cuda
