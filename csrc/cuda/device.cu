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

}  // namespace glm::cuda
