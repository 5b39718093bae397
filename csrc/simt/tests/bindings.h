#pragma once

#include <pybind11/pybind11.h>

namespace glm::cuda::testing {

void bind(pybind11::module_& m);  // the kernels of this folder, for python_tests/simt

}  // namespace glm::cuda::testing
