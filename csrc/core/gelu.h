// GELU and its derivative (Hendrycks & Gimpel, arXiv 1606.08415; derivation in docs/math.md), scalar form.
//   erf    x Phi(x)                                          Phi the normal distribution function
//   tanh   x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))     what GLM trains with
#pragma once

#include <cmath>

#include "core/check.h"

namespace glm {

enum class Gelu : int { tanh, erf };

inline constexpr double kGeluTanhScale = 0.79788456080286535588;  // sqrt(2/pi)
inline constexpr double kGeluTanhCubic = 0.044715;
inline constexpr double kInvSqrt2 = 0.70710678118654752440;
inline constexpr double kInvSqrt2Pi = 0.39894228040143267794;

template <class C>
GLM_HD C gelu(C x, Gelu kind) {
  if (kind == Gelu::erf) return C(0.5) * x * std::erfc(-x * C(kInvSqrt2));
  const C inner = C(kGeluTanhScale) * (x + C(kGeluTanhCubic) * x * x * x);
  return C(0.5) * x * (C(1) + std::tanh(inner));
}

template <class C>
GLM_HD C gelu_grad(C x, Gelu kind) {
  if (kind == Gelu::erf)
    return C(0.5) * std::erfc(-x * C(kInvSqrt2)) + x * C(kInvSqrt2Pi) * std::exp(C(-0.5) * x * x);
  const C inner = C(kGeluTanhScale) * (x + C(kGeluTanhCubic) * x * x * x);
  const C t = std::tanh(inner);
  const C inner_grad = C(kGeluTanhScale) * (C(1) + C(3 * kGeluTanhCubic) * x * x);
  return C(0.5) * (C(1) + t) + C(0.5) * x * (C(1) - t * t) * inner_grad;
}

}  // namespace glm
