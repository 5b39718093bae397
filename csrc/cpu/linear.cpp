// A linear layer as packed matrix products (cpu/gemm.h), one forward and two backward:
//   y = x w^T + b,   dx = dy w,   dw = dy^T x,   db = sum_n dy.
#include "ops/linear.h"

#include "cpu/declarations.h"
#include "cpu/gemm.h"
#include "cpu/matrix.h"

namespace glm::cpu::GLM_ISA {

void linear_forward(const LinearForward& p) {
  visit_storage(p.dtype, [&]<class T>(Type<T>) {
    const Store<T> store = {static_cast<T*>(p.y), p.width_out, static_cast<const T*>(p.bias)};
    gemm(p.rows, p.width_out, p.width, by_rows<T>(p.x), by_rows<T>(p.weight), store, p.threads);
  });
}

void linear_backward(const LinearBackward& p) {
  visit_storage(p.dtype, [&]<class T>(Type<T>) {
    if (p.grad_x) {
      const Store<T> store = {static_cast<T*>(p.grad_x), p.width};
      gemm(p.rows, p.width, p.width_out, by_rows<T>(p.grad_y), by_cols<T>(p.weight), store, p.threads);
    }
    if (p.grad_weight) {
      const Store<T> store = {static_cast<T*>(p.grad_weight), p.width};
      gemm(p.width_out, p.width, p.rows, by_cols<T>(p.grad_y), by_cols<T>(p.x), store, p.threads);
    }
    if (p.grad_bias) {
      sum_rows<T>(by_rows<T>(p.grad_y), p.rows, p.width_out, static_cast<Compute<T>*>(p.sums),
                  static_cast<T*>(p.grad_bias), p.threads);
    }
  });
}

}  // namespace glm::cpu::GLM_ISA
