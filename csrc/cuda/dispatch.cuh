// Run-time values become compile-time constants (see core/dispatch.h).
#pragma once

#include "core/dispatch.h"

namespace glm::cuda {

// Calls function(Type<T>{}) with the storage type of a dtype that the GPU kernels know.
template <class Function>
void visit_gpu_floating(DType dtype, Function&& function) {
  GLM_CHECK(dtype != DType::f64,
            "dtype: expected float32, bfloat16 or float16 on a GPU, got float64; run it on the CPU");
  switch (dtype) {
    case DType::f32:
      return function(Type<float>{});
    case DType::bf16:
      return function(Type<bf16>{});
    case DType::f16:
      return function(Type<f16>{});
    default:
      fail("dtype: expected float32, bfloat16 or float16, got code ", static_cast<int>(dtype));
  }
}

// Whether rows of `width` elements of T at these addresses can be read 16 bytes at a time. Null is fine.
template <class T, class... Pointers>
bool rows_are_aligned(int64_t width, const Pointers*... pointers) {
  [[maybe_unused]] const auto aligned = [](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  };
  return width * static_cast<int64_t>(sizeof(T)) % 16 == 0 && (aligned(pointers) && ...);
}

// Blocks of a grid that covers `work` items.
inline unsigned blocks_for(int64_t work, int64_t per_block) {
  return static_cast<unsigned>((work + per_block - 1) / per_block);
}

}  // namespace glm::cuda
