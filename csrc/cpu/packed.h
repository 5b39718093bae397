// What a matrix product multiplies: storage values as they lie in packed panels.
//
//   float, double    themselves
//   bf16, f16        widened to float as they are packed
//   bf16             where the machine has a product for them (avx512bf16): Pair, two neighbours along the sum
//                    in 32 bits. Nothing is widened, and an instruction does twice the work; products are
//                    exact, sums float (to nearest even; subnormals are taken, and given, as zeros)
//
// So a step of a product is one k, or two: what counts in steps (cpu/microkernel.h, cpu/dot.h, the inner
// loops of cpu/gemm.h) is the same code for both.
#pragma once

#include "core/dispatch.h"
#include "cpu/simd.h"

namespace glm::cpu::GLM_ISA {

using Pair = uint32_t;  // element 2 s of the sum in the lower half, 2 s + 1 in the upper

#if defined(__AVX512BF16__)
inline constexpr bool kMultipliesBf16 = true;
#else
inline constexpr bool kMultipliesBf16 = false;
#endif

template <class T>
using Packed = std::conditional_t<kMultipliesBf16 && std::is_same_v<T, bf16>, Pair, Compute<T>>;

template <class P>
inline constexpr bool kIsPair = std::is_same_v<P, Pair>;

template <class P>
inline constexpr int kPerStep = kIsPair<P> ? 2 : 1;

// What products of P are summed in.
template <class P>
using SumOf = std::conditional_t<kIsPair<P>, float, P>;

template <class P>
constexpr int64_t steps_of(int64_t depth) {
  return (depth + kPerStep<P> - 1) / kPerStep<P>;
}

// sum + a b
template <class V>
GLM_INLINE V multiply_add(V a, V b, V sum) {
  return fma(a, b, sum);
}

// Steps from `count` contiguous elements, at most a vector of steps; the other lanes are zero.
template <class P, class T>
  requires(!kIsPair<P>)
GLM_INLINE Vec<P> load_steps(const T* p, int count) {
  return load_as_some(p, count);
}

#if defined(__AVX512BF16__)

GLM_INLINE VecF multiply_add(VecU a, VecU b, VecF sum) {
  return reinterpret_cast<VecF>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a),
                                                 reinterpret_cast<__m512bh>(b)));
}

template <class P>
  requires(kIsPair<P>)
GLM_INLINE VecU load_steps(const bf16* p, int count) {
  if (count == 2 * kLanes<Pair>) return reinterpret_cast<VecU>(_mm512_loadu_si512(p));
  return reinterpret_cast<VecU>(_mm512_maskz_loadu_epi16((1u << count) - 1, p));
}

// The bits of `count` bf16 in 32-bit lanes.
GLM_INLINE VecU load_bits(const bf16* p, int count) {
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  return reinterpret_cast<VecU>(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)));
}
GLM_INLINE VecU join(VecU lower, VecU upper) { return lower | upper << 16; }

// Floats rounded to pairs: of two vectors lane by lane, and of neighbours, those of `second` after `first`'s.
GLM_INLINE VecU pair_neighbours(VecF first, VecF second) {
  return reinterpret_cast<VecU>(
      _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first)));
}
GLM_INLINE VecU pair_lanes(VecF lower, VecF upper) {
  constexpr __mmask32 kAll = 0xffffffff;
  const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                         22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return reinterpret_cast<VecU>(
      _mm512_maskz_permutexvar_epi16(kAll, turns, reinterpret_cast<__m512i>(pair_neighbours(lower, upper))));
}

// Two rows of 32 bf16 as pairs across them: of elements 0 to 15, and of the others.
template <bool kUpper>
GLM_INLINE VecU pair_rows(VecU first, VecU second) {
  const auto half = [](VecU x) {
    const __m256i bits = _mm512_extracti64x4_epi64(reinterpret_cast<__m512i>(x), kUpper ? 1 : 0);
    return reinterpret_cast<VecU>(_mm512_cvtepu16_epi32(bits));
  };
  return join(half(first), half(second));
}

#endif

// function of each value of a packed vector; of pairs, rounded to bf16 again.
template <class V, class Function>
GLM_INLINE V map_packed(V v, const Function& function) {
  if constexpr (kIsPair<LaneOf<V>>) {
    const VecF lower = reinterpret_cast<VecF>(v << 16), upper = reinterpret_cast<VecF>(v & 0xffff0000u);
    return pair_lanes(function(lower), function(upper));
  } else {
    return function(v);
  }
}

// Calls function(Type<P>()) with what a kernel that sums in C alone multiplies: float (16 bits are widened),
// double, or pairs in a set of them.
template <class Function>
void visit_packed([[maybe_unused]] DType dtype, Function&& function) {
  if constexpr (kMultipliesBf16) {
    function(Type<Pair>());
  } else if (dtype == DType::f64) {
    function(Type<double>());
  } else {
    function(Type<float>());
  }
}

// visit_floating, for the storage types that this set has kernels for: all, or bf16 alone, where a set only
// adds products of bf16 to another (cpu/avx512bf16.cpp).
template <class Function>
void visit_storage([[maybe_unused]] DType dtype, Function&& function) {
  if constexpr (kMultipliesBf16) {
    function(Type<bf16>());
  } else {
    visit_floating(dtype, function);
  }
}

}  // namespace glm::cpu::GLM_ISA
