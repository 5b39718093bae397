// A torch tensor as the core sees it: pointer, dtype, shape, strides. The extension includes no torch header
// and links no torch library; it asks the Python object, which costs a few hundred nanoseconds and works with
// every torch.
#pragma once

#include <pybind11/pybind11.h>

#include "core/dtype.h"
#include "ops/matrix.h"

namespace glm {

struct View {
  static constexpr int kMaxRank = 16;

  void* data = nullptr;  // null for None
  DType dtype = DType::f32;
  int rank = 0;
  int64_t shape[kMaxRank] = {};
  int64_t stride[kMaxRank] = {};

  bool present() const { return data != nullptr; }
  int64_t numel() const {
    int64_t count = 1;
    for (int d = 0; d < rank; ++d) count *= shape[d];
    return count;
  }
  Matrix matrix() const { return {data, stride[0], stride[1]}; }
};

}  // namespace glm

namespace pybind11::detail {

template <>
struct type_caster<glm::View> {
  PYBIND11_TYPE_CASTER(glm::View, const_name("torch.Tensor | None"));

  bool load(handle source, bool);
};

}  // namespace pybind11::detail
