// GELU and its derivative for vectors; definitions and the scalar form are in core/gelu.h.
//
// Both kinds are written with a power of two that is at most 1, so that no tail is a difference of near
// equals:
//
//   tanh   gelu = x / (1 + 2^t), t = -a |x| (1 + 0.044715 x^2), a = 2 sqrt(2/pi) log2 e        x >= 0
//          gelu = x 2^t / (1 + 2^t)                                                            x < 0
//   erf    gelu = x (1 - 2^t R(|x|)), t = -(log2 e)/2 x^2                                      x >= 0
//          gelu = x 2^t R(|x|),       R(y) = exp(y^2/2) Phi(-y), Mills' ratio / sqrt(2 pi)      x < 0
//
// t is carried as a sum of two floats: alone, its rounding would cost 2^t up to 50 ulp in the tail. In float
// gelu is within 3.0 ulp (tanh) and 4.5 ulp (erf) of the exact value for every x down to the subnormals; the
// derivative within 5.6 (tanh) and 4.5 (erf), except near its zero, where its absolute error is below 1.2e-7.
// As in torch, gelu(-infinity) is NaN. Double is for gradient checks: core/gelu.h, lane by lane.
#pragma once

#include "core/gelu.h"
#include "cpu/simd.h"

namespace glm::cpu::GLM_ISA {
namespace detail {

// a * b + c rounded once on every instruction set: through double where there is no fma.
GLM_INLINE VecF fma_exact(VecF a, VecF b, VecF c) {
#if defined(__FMA__) || defined(__ARM_NEON)
  return fma(a, b, c);
#else
  for (int i = 0; i < kLanes<float>; ++i)
    c[i] =
        static_cast<float>(static_cast<double>(a[i]) * static_cast<double>(b[i]) + static_cast<double>(c[i]));
  return c;
#endif
}

GLM_INLINE VecF abs(VecF x) { return reinterpret_cast<VecF>(reinterpret_cast<VecI>(x) & 0x7fffffff); }

// 2^exponent of a normal number, or 0 for exponent -127.
GLM_INLINE VecF power_of_two(VecI exponent) { return reinterpret_cast<VecF>((exponent + 127) << 23); }

// (1 + excess) 2^exponent, |excess| < 0.42 and exponent within [-253, 0]. 1 + excess is never rounded on its
// own.
struct Power {
  VecF excess;
  VecI exponent;

  // v (1 + excess), rounded once.
  GLM_INLINE VecF mantissa_times(VecF v) const { return fma(v, excess, v); }
  // v 2^exponent, exact but for one rounding where the result is subnormal. 0 v at -253.
  GLM_INLINE VecF scale(VecF v) const {
    const VecI normal = at_least(broadcast(-126), exponent);
    return v * power_of_two(normal) * power_of_two(exponent - normal);
  }
  GLM_INLINE VecF normal_power() const { return power_of_two(at_least(broadcast(-126), exponent)); }
  GLM_INLINE VecF value() const { return mantissa_times(normal_power()); }
  GLM_INLINE VecF one_plus() const { return fma(normal_power(), excess, 1.0f + normal_power()); }
  // The square of one_plus = s, without what the rounding of s would add to it twice.
  GLM_INLINE VecF one_plus_squared(VecF s) const {
    const VecF rounded_off = fma(normal_power(), excess, (1.0f - s) + normal_power());
    return fma(s, s, 2.0f * s * rounded_off);
  }
};

// 2^(high + low), high at most 0 and low tiny: a minimax polynomial of degree 6, relative
// error 1.9e-9.
GLM_INLINE Power exp2(VecF high, VecF low) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const VecF clamped = at_least(broadcast(-253.0f), high);
  const VecF shifted = clamped + kMagic;
  const VecF f = (clamped - (shifted - kMagic)) + low;
  VecF p = broadcast(1.534581723e-4f);
  p = fma(p, f, broadcast(1.339993116e-3f));
  p = fma(p, f, broadcast(9.618488938e-3f));
  p = fma(p, f, broadcast(5.550328777e-2f));
  p = fma(p, f, broadcast(2.402264689e-1f));
  p = fma(p, f, broadcast(6.931472057e-1f));
  return {p * f, reinterpret_cast<VecI>(shifted) - 0x4b400000};
}

// 2^t of the tanh kind, y = |x| up to 13.5.
GLM_INLINE Power tanh_power(VecF y) {
  constexpr float kA = 0x1.26ap+1f, kALow = 4.503856443e-4f;  // 12 bits of a, and the rest: kA - p is exact
  constexpr float kB = 0x1.a5a7dp-4f, kBLow = -2.016198436e-9f;  // 0.044715 a
  const VecF square = y * y, square_low = fma_exact(y, y, -square);
  const VecF p = fma(broadcast(kB), square, broadcast(kA));
  const VecF p_low = fma_exact(broadcast(kB), square, kA - p) +
                     fma(broadcast(kB), square_low, fma(broadcast(kBLow), square, broadcast(kALow)));
  const VecF t = -(y * p);
  return exp2(t, -fma(y, p_low, fma_exact(y, p, t)));
}

// 2^t of the erf kind, y = |x| up to 19.
GLM_INLINE Power erf_power(VecF y) {
  constexpr float kHalfLog2E = 0x1.715476p-1f, kHalfLog2ELow = 9.629814956e-9f;
  const VecF square = y * y, square_low = fma_exact(y, y, -square);
  const VecF t = square * -kHalfLog2E;
  const VecF low = fma_exact(square, broadcast(kHalfLog2E), t);
  return exp2(t, -fma(square_low, broadcast(kHalfLog2E), fma(square, broadcast(kHalfLog2ELow), low)));
}

// R(y) = P(q) / (y + 3), q = (y - 3) / (y + 3): minimax on [1, 14.5], relative error 1.4e-8.
GLM_INLINE VecF mills(VecF y) {
  const VecF w = 1.0f / (y + 3.0f);
  const VecF q = (y - 3.0f) * w;
  VecF p = broadcast(-1.022209514e-3f);
  p = fma(p, q, broadcast(9.093169408e-4f));
  p = fma(p, q, broadcast(6.983300739e-3f));
  p = fma(p, q, broadcast(-1.044430225e-2f));
  p = fma(p, q, broadcast(-4.726515931e-2f));
  p = fma(p, q, broadcast(2.300167515e-1f));
  p = fma(p, q, broadcast(-5.093319067e-1f));
  p = fma(p, q, broadcast(7.290836982e-1f));
  return p * w;
}

// Phi(x) = 1/2 + x S(x^2): minimax on [-1, 1], relative error of S 7.1e-10.
GLM_INLINE VecF normal_near_zero(VecF x) {
  const VecF square = x * x;
  VecF s = broadcast(-7.65420866e-6f);
  s = fma(s, square, broadcast(1.134863728e-4f));
  s = fma(s, square, broadcast(-1.186329943e-3f));
  s = fma(s, square, broadcast(9.97332341e-3f));
  s = fma(s, square, broadcast(-6.649035992e-2f));
  s = fma(s, square, broadcast(3.989422801e-1f));
  return fma(x, s, broadcast(0.5f));
}

}  // namespace detail

template <Gelu kKind>
GLM_INLINE VecF gelu(VecF x) {
  const VecI negative = x < 0.0f;
  if constexpr (kKind == Gelu::tanh) {
    const detail::Power e = detail::tanh_power(at_most(broadcast(13.5f), detail::abs(x)));
    const VecF ratio = (negative ? e.mantissa_times(x) : x) / e.one_plus();
    return negative ? e.scale(ratio) : ratio;
  } else {
    const VecF y = at_most(broadcast(19.0f), detail::abs(x));
    const detail::Power e = detail::erf_power(y);
    const VecF r = detail::mills(y);
    const VecF far = negative ? e.scale(e.mantissa_times(x * r)) : x * (1.0f - e.value() * r);
    return y < 1.0f ? x * detail::normal_near_zero(x) : far;
  }
}

// The derivative, from the same powers:
//   tanh   (1 + e + e x m) / (1 + e)^2, m = 2 sqrt(2/pi) (1 + 3 * 0.044715 x^2)       e = 2^t, x >= 0
//          (1 + e + x m) e / (1 + e)^2                                                x < 0
//   erf    1 - e D and e D, D = R(|x|) - |x| / sqrt(2 pi)
template <Gelu kKind>
GLM_INLINE VecF gelu_grad(VecF x) {
  const VecI negative = x < 0.0f;
  if constexpr (kKind == Gelu::tanh) {
    const VecF y = at_most(broadcast(13.5f), detail::abs(x));
    const detail::Power e = detail::tanh_power(y);
    const VecF slope = fma(y * y, broadcast(static_cast<float>(6 * kGeluTanhScale * kGeluTanhCubic)),
                           broadcast(static_cast<float>(2 * kGeluTanhScale)));
    const VecF sum = e.one_plus();
    const VecF numerator = fma(y * slope, negative ? broadcast(-1.0f) : e.value(), sum);
    const VecF ratio = (negative ? e.mantissa_times(numerator) : numerator) / e.one_plus_squared(sum);
    return negative ? e.scale(ratio) : ratio;
  } else {
    const VecF y = at_most(broadcast(19.0f), detail::abs(x));
    const detail::Power e = detail::erf_power(y);
    const VecF d = fma(y, broadcast(static_cast<float>(-kInvSqrt2Pi)), detail::mills(y));
    const VecF far = negative ? e.scale(e.mantissa_times(d)) : 1.0f - e.value() * d;
    const VecF density = e.value() * static_cast<float>(kInvSqrt2Pi);
    return y < 1.0f ? fma(x, density, detail::normal_near_zero(x)) : far;
  }
}

template <Gelu kKind>
GLM_INLINE VecD gelu(VecD x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = glm::gelu(static_cast<double>(x[i]), kKind);
  return x;
}

template <Gelu kKind>
GLM_INLINE VecD gelu_grad(VecD x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = glm::gelu_grad(static_cast<double>(x[i]), kKind);
  return x;
}

}  // namespace glm::cpu::GLM_ISA
