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
// t, and what a rounding of its own would spoil, is carried as a sum of two floats. In float gelu is within 2
// ulp of the exact value, also of subnormals, and the derivative within 2 ulp, or 2 ulp of 1/8 where it is
// smaller than that near its zero: python_tests/ops/test_gelu_accuracy.py, on a sample of all floats. As in torch,
// gelu(-infinity) is NaN. Double is for gradient checks: core/gelu.h, lane by lane.
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

// high + low, never added: low is about an ulp of high.
struct Pair {
  VecF high, low;

  GLM_INLINE VecF rounded() const { return high + low; }
};

GLM_INLINE Pair product(Pair a, Pair b) {
  const VecF high = a.high * b.high;
  return {high, fma(a.low, b.high, fma(a.high, b.low, fma_exact(a.high, b.high, -high)))};
}

GLM_INLINE Pair sum(Pair a, Pair b) {
  const VecF high = a.high + b.high, from_b = high - a.high;
  return {high, ((a.high - (high - from_b)) + (b.high - from_b)) + (a.low + b.low)};
}

// A constant to twice the digits.
GLM_INLINE Pair constant(double x) {
  const auto high = static_cast<float>(x);
  return {broadcast(high), broadcast(static_cast<float>(x - static_cast<double>(high)))};
}

GLM_INLINE Pair exactly(VecF x) { return {x, VecF{}}; }

// a b + c with c.high / 2 <= a b + c.high <= 2 c.high: then c.high - high is exact.
GLM_INLINE Pair product_sum(VecF a, VecF b, Pair c) {
  const VecF high = fma_exact(a, b, c.high);
  return {high, fma_exact(a, b, c.high - high) + c.low};
}

// (1 + excess) 2^exponent, |excess| < 0.42 and exponent within [-253, 0]. 1 + excess is never rounded on its
// own.
struct Power {
  VecF excess;
  VecI exponent;

  // v 2^exponent, exact but for one rounding where the result is subnormal. 0 v at -253.
  GLM_INLINE VecF scale(VecF v) const {
    const VecI normal = at_least(broadcast(-126), exponent);
    return v * power_of_two(normal) * power_of_two(exponent - normal);
  }
  GLM_INLINE VecF normal_power() const { return power_of_two(at_least(broadcast(-126), exponent)); }
  // Where it would be subnormal, about 2^-126: beside 1 that is nothing.
  GLM_INLINE Pair value() const { return product_sum(normal_power(), excess, exactly(normal_power())); }
  GLM_INLINE Pair one_plus() const {
    const VecF power = normal_power(), high = fma(power, excess, 1.0f + power);
    return {high, fma(power, excess, (1.0f - high) + power)};
  }
};

// a (1 + excess), rounded at the end.
GLM_INLINE VecF scale_up(Pair a, VecF excess) {
  const VecF high = fma_exact(a.high, excess, a.high);
  return high + fma_exact(a.high, excess, (a.high - high) + fma(a.low, excess, a.low));
}

// 1 / b, b from 1 on.
GLM_INLINE Pair inverse(Pair b) {
  const VecF high = 1.0f / b.high;
  return {high, high * fma(-high, b.low, fma_exact(-high, b.high, broadcast(1.0f)))};
}

// 2^(high + low), high at most 0 and low tiny: a minimax polynomial of degree 6, relative
// error 1.9e-9.
GLM_INLINE Power exp2(VecF high, VecF low) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const VecF clamped = at_least(broadcast(-253.0f), high);
  const VecF shifted = clamped + kMagic;
  const VecF f = (clamped - (shifted - kMagic)) + low;
  VecF p = broadcast(1.534581723e-4f);
  p = fma_exact(p, f, broadcast(1.339993116e-3f));
  p = fma_exact(p, f, broadcast(9.618488938e-3f));
  p = fma_exact(p, f, broadcast(5.550328777e-2f));
  p = fma_exact(p, f, broadcast(2.402264689e-1f));
  p = fma_exact(p, f, broadcast(6.931472057e-1f));
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
GLM_INLINE Pair mills(VecF y) {
  const VecF denominator = y + 3.0f;
  const Pair w = inverse({denominator, y - (denominator - 3.0f)});
  const VecF q = fma_exact(broadcast(-6.0f), w.high, broadcast(1.0f)) - 6.0f * w.low;
  VecF p = broadcast(-1.022209514e-3f);
  p = fma_exact(p, q, broadcast(9.093169408e-4f));
  p = fma_exact(p, q, broadcast(6.983300739e-3f));
  p = fma_exact(p, q, broadcast(-1.044430225e-2f));
  p = fma_exact(p, q, broadcast(-4.726515931e-2f));
  p = fma_exact(p, q, broadcast(2.300167515e-1f));
  p = fma_exact(p, q, broadcast(-5.093319067e-1f));
  return product(product_sum(p, q, constant(7.290836982e-1)), w);
}

// Phi(x) = 1/2 + x S(x^2): minimax on [-1, 1], relative error of S 7.1e-10.
GLM_INLINE Pair normal_near_zero(VecF x) {
  const VecF square = x * x;
  VecF s = broadcast(-7.65420866e-6f);
  s = fma(s, square, broadcast(1.134863728e-4f));
  s = fma(s, square, broadcast(-1.186329943e-3f));
  s = fma(s, square, broadcast(9.97332341e-3f));
  s = fma(s, square, broadcast(-6.649035992e-2f));
  const Pair slope = product_sum(s, square, constant(kInvSqrt2Pi));
  return sum(exactly(broadcast(0.5f)), product(exactly(x), slope));
}

}  // namespace detail

template <Gelu kKind>
GLM_INLINE VecF gelu(VecF x) {
  const VecI negative = x < 0.0f;
  if constexpr (kKind == Gelu::tanh) {
    const detail::Power e = detail::tanh_power(at_most(broadcast(13.5f), detail::abs(x)));
    const VecF excess = negative ? e.excess : VecF{};
    const detail::Pair sum = e.one_plus();
    const VecF w = 1.0f / sum.high;
    const VecF n = fma(x, excess, x), n_low = fma(x, excess, x - n);
    const VecF first = n * w;
    const VecF rest = detail::fma_exact(-first, sum.high, n) + fma(-first, sum.low, n_low);
    const VecF ratio = fma(rest, w, first);
    return x > 13.5f ? x : negative ? e.scale(ratio) : ratio;
  } else {
    const VecF y = at_most(broadcast(19.0f), detail::abs(x));
    const detail::Power e = detail::erf_power(y);
    const detail::Pair r = detail::mills(y);
    const VecF below = e.scale(detail::scale_up(detail::product(detail::exactly(x), r), e.excess));
    const VecF above = x * (1.0f - e.value().high * r.high);
    return y < 1.0f   ? detail::product(detail::exactly(x), detail::normal_near_zero(x)).rounded()
           : negative ? below
                      : above;
  }
}

// The derivative, from the same powers, e = 2^t, w = 1 / (1 + e), y = |x|:
//   tanh   w (1 + y m w e), m = 2 sqrt(2/pi) (1 + 3 * 0.044715 x^2)                    x >= 0
//          e w (1 - y m w)                                                             x < 0
//   erf    1 - e D and e D, D = R(y) - y / sqrt(2 pi)
template <Gelu kKind>
GLM_INLINE VecF gelu_grad(VecF x) {
  const VecI negative = x < 0.0f;
  if constexpr (kKind == Gelu::tanh) {
    const VecF y = at_most(broadcast(13.5f), detail::abs(x));
    const detail::Power e = detail::tanh_power(y);
    const detail::Pair w = detail::inverse(e.one_plus());
    const detail::Pair y_pair = detail::exactly(y);
    const detail::Pair m = detail::sum(detail::constant(2 * kGeluTanhScale),
                                       detail::product(detail::constant(6 * kGeluTanhScale * kGeluTanhCubic),
                                                       detail::product(y_pair, y_pair)));
    const detail::Pair u = detail::product(detail::product(y_pair, m), w);
    const detail::Pair part = {negative ? -u.high : u.high * e.value().high, negative ? -u.low : VecF{}};
    const detail::Pair bracket = detail::sum(detail::exactly(broadcast(1.0f)), part);
    const VecF ratio = detail::scale_up(detail::product(bracket, w), negative ? e.excess : VecF{});
    return negative ? e.scale(ratio) : ratio;
  } else {
    const VecF y = at_most(broadcast(19.0f), detail::abs(x));
    const detail::Power e = detail::erf_power(y);
    const detail::Pair r = detail::mills(y);
    const detail::Pair d =
        detail::sum(r, detail::product(detail::constant(-kInvSqrt2Pi), detail::exactly(y)));
    const VecF far = negative ? e.scale(detail::scale_up(d, e.excess)) : 1.0f - e.value().high * d.high;
    const detail::Pair density = detail::product(e.value(), detail::constant(kInvSqrt2Pi));
    const detail::Pair near =
        detail::sum(detail::normal_near_zero(x), detail::product(density, detail::exactly(x)));
    return y < 1.0f ? near.rounded() : far;
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
