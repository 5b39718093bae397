// GLM_CUDA_CHECK: a CUDA runtime call whose failure becomes a C++ exception (RuntimeError in Python).
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace glm::cuda {

inline void throw_on_error(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // a failed launch is kept until it is read: the next call must not report it again
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorName(error) + " (" +
                           cudaGetErrorString(error) + ")");
}

}  // namespace glm::cuda

#define GLM_CUDA_CHECK(call) ::glm::cuda::throw_on_error((call), #call)
