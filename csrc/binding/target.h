// Where a call runs: on the CPU with some threads, or on a GPU's stream. In Python an int, or the pair
// (device, stream handle).
#pragma once

#include <pybind11/pybind11.h>

#include <type_traits>

#include "cuda/device.h"
#include "cuda/kernels.h"

namespace glm {

struct Target {
  int threads = 1;
  bool gpu = false;  // whether the call is for the CUDA kernels: their workspaces, no look at values
  int device = -1;   // of these; -1 where they are executed on the host
  cudaStream_t stream = nullptr;
};

// Runs one of the two kernels, without Python's lock. An op of a GPU alone has null for the other.
template <class Result, class Params>
Result run(const Target& target, Result (*on_cpu)(const Params&), void (*on_gpu)(const Params&, cudaStream_t),
           const std::type_identity_t<Params>& params) {
  const pybind11::gil_scoped_release release;
  if (target.device < 0 && on_cpu != nullptr) return on_cpu(params);
  GLM_CHECK(target.gpu && on_gpu != nullptr, "device: this build of glm_ext has no such CUDA kernel");
  const cuda::DeviceGuard guard(target.device);
  on_gpu(params, target.stream);
  return Result();
}

}  // namespace glm

namespace pybind11::detail {

template <>
struct type_caster<glm::Target> {
  PYBIND11_TYPE_CASTER(glm::Target, const_name("int | tuple[int, int]"));

  bool load(handle source, bool);
};

}  // namespace pybind11::detail
