// Run-time values become compile-time constants through visit_* and a generic lambda.
#pragma once

#include <type_traits>

#include "core/dtype.h"

namespace glm {

template <class T>
struct Type {
  using type = T;
};

// Calls function(Type<T>{}) with the storage type T of a floating dtype.
template <class Function>
void visit_floating(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::f32:
      return function(Type<float>{});
    case DType::f64:
      return function(Type<double>{});
    case DType::bf16:
      return function(Type<bf16>{});
    case DType::f16:
      return function(Type<f16>{});
    default:
      fail("dtype: expected float32, float64, bfloat16 or float16, got code ", static_cast<int>(dtype));
  }
}

template <class Function>
void visit_bool(bool value, Function&& function) {
  if (value) {
    function(std::true_type{});
  } else {
    function(std::false_type{});
  }
}

}  // namespace glm
