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
    found.push_back({properties.name, properties.major, properties.minor});
  }
  return found;
}

bool has_wgmma() {
#if defined(GLM_HAVE_SM90A)
  int device = 0, major = 0;
  GLM_CUDA_CHECK(cudaGetDevice(&device));
  GLM_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major == 9;
#else
  return false;
#endif
}

DeviceGuard::DeviceGuard(int device) {
  GLM_CUDA_CHECK(cudaGetDevice(&before_));
  if (device != before_) GLM_CUDA_CHECK(cudaSetDevice(device));
}

DeviceGuard::~DeviceGuard() { cudaSetDevice(before_); }  // no effect where it is current already

}  // namespace glm::cuda
