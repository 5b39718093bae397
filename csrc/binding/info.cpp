#include <pybind11/stl.h>

#include "binding/register.h"
#include "cpu/kernels.h"
#include "cuda/device.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

using CudaDevice = std::tuple<std::string, int, int, int64_t>;

std::vector<CudaDevice> cuda_devices() {
  std::vector<CudaDevice> found;
  for (const glm::cuda::Device& device : glm::cuda::devices())
    found.emplace_back(device.name, device.major, device.minor, device.shared_bytes);
  return found;
}

}  // namespace

void glm::register_info(py::module_& m) {
  m.def(
      "isa", [] { return std::string(cpu::kernels().isa); },
      "The instruction set of the CPU kernels in force.");
  m.def("isas_built", &cpu::isas_built, "The instruction sets that this build holds, best first.");
  m.def("isas_supported", &cpu::isas_supported, "Those of them that this machine runs.");
  m.def(
      "fma_peak",
      [](int threads) {
        const py::gil_scoped_release release;
        return cpu::kernels().fma_peak(threads);
      },
      "threads"_a, "Measured float multiply-add peak of this machine, GFLOP/s.");
  m.def("compiler", [] { return std::string(GLM_COMPILER); }, "The compiler that built the extension.");
  m.def(
      "cuda_architectures", [] { return std::string(GLM_CUDA_ARCHITECTURES); },
      "The CUDA architectures that this build holds, as in \"80 90a\"; empty without CUDA.");
  m.def("cuda_devices", &cuda_devices,
        "(name, major, minor, shared bytes of a block) of each GPU that the CUDA build sees.");
  m.def("use_wgmma", &glm::cuda::use_wgmma, "wanted"_a,
        "Whether Hopper GPUs run the kernels of warpgroups, where an op has them; as GLM_WGMMA=1 says at "
        "first.");
  m.def("use_ffma", &glm::cuda::use_ffma, "wanted"_a,
        "Whether attention on GPUs multiplies float32 by FFMA; as GLM_FFMA=1 says at first.");
  m.def(
      "limit_shared_bytes", &glm::cuda::limit_shared_bytes_per_block, "bytes"_a,
      "Chooses attention's tiles as for a GPU whose blocks have no more shared memory than this: for tests.");
}
