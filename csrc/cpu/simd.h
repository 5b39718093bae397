// One vector type per instruction set. Every file of csrc/cpu that says GLM_ISA is compiled once for each
// set, into a namespace of its name; the table of kernels is chosen at load (cpu/dispatch.cpp).
//
// Vectors are the compiler's own (operators work lane by lane); this header adds what operators cannot say. A
// function takes any vector type V; Vec<float> and Vec<double> are the two in use.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "core/dtype.h"

#ifndef GLM_ISA
#error "compile with -DGLM_ISA=scalar|avx2|avx512|avx512bf16|neon"
#endif

#define GLM_INLINE [[gnu::always_inline]] inline

namespace glm::cpu::GLM_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

namespace detail {
template <class Lane>
struct VectorOf {
  typedef Lane type __attribute__((vector_size(kVectorBytes)));
};
}  // namespace detail

template <class Lane>
using Vec = typename detail::VectorOf<Lane>::type;

template <class V>
using LaneOf = std::remove_cvref_t<decltype(std::declval<V>()[0])>;

template <class Lane>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Lane));

using VecF = Vec<float>;
using VecD = Vec<double>;
using VecI = Vec<int32_t>;
using VecU = Vec<uint32_t>;

// ------------------------------------------------------------------------------------------------ lanes

template <class Lane>
GLM_INLINE Vec<Lane> broadcast(Lane x) {
  return x - Vec<Lane>{};  // the compilers' own form of a splat; x - 0 keeps every bit of x
}

template <class Lane>
GLM_INLINE Vec<Lane> load(const Lane* p) {
  Vec<Lane> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class Lane>
GLM_INLINE void store(Lane* p, Vec<Lane> v) {
  std::memcpy(p, &v, sizeof(v));
}

// The first `count` lanes (0 <= count <= kLanes); the others read as zero and are not touched in memory.
template <class Lane>
GLM_INLINE Vec<Lane> load_first(const Lane* p, int count) {
#if defined(__AVX512F__)
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  if constexpr (sizeof(Lane) == 4) return reinterpret_cast<Vec<Lane>>(_mm512_maskz_loadu_epi32(mask, p));
  if constexpr (sizeof(Lane) == 8)
    return reinterpret_cast<Vec<Lane>>(_mm512_maskz_loadu_epi64(static_cast<__mmask8>(mask), p));
#elif defined(__AVX2__)
  using Index = std::conditional_t<sizeof(Lane) == 4, int32_t, int64_t>;
  Vec<Index> lane;
  for (int i = 0; i < kLanes<Lane>; ++i) lane[i] = i;
  const auto mask = reinterpret_cast<__m256i>(broadcast(static_cast<Index>(count)) > lane);
  if constexpr (sizeof(Lane) == 4)
    return reinterpret_cast<Vec<Lane>>(_mm256_maskload_epi32(reinterpret_cast<const int*>(p), mask));
  if constexpr (sizeof(Lane) == 8)
    return reinterpret_cast<Vec<Lane>>(_mm256_maskload_epi64(reinterpret_cast<const long long*>(p), mask));
#endif
  Lane lanes[kLanes<Lane>] = {};
  std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(Lane));
  return load(lanes);
}

template <class Lane>
GLM_INLINE void store_first(Lane* p, Vec<Lane> v, int count) {
#if defined(__AVX512F__)
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  if constexpr (sizeof(Lane) == 4) return _mm512_mask_storeu_epi32(p, mask, reinterpret_cast<__m512i>(v));
  if constexpr (sizeof(Lane) == 8)
    return _mm512_mask_storeu_epi64(p, static_cast<__mmask8>(mask), reinterpret_cast<__m512i>(v));
#endif
  Lane lanes[kLanes<Lane>];
  store(lanes, v);
  std::memcpy(p, lanes, static_cast<size_t>(count) * sizeof(Lane));
}

// Which lanes of a VecF, or of a VecU.
#if defined(__AVX512F__)
using LaneMask = __mmask16;
#else
using LaneMask = VecI;
#endif

GLM_INLINE LaneMask at_most(VecU x, VecU bound) {
#if defined(__AVX512F__)
  return _mm512_cmple_epu32_mask(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(bound));
#else
  return x <= bound;
#endif
}

// Bit l is set where lane l is in the mask.
GLM_INLINE uint32_t bits_of(LaneMask mask) {
#if defined(__AVX512F__)
  return mask;
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#else
  uint32_t bits = 0;
  for (int l = 0; l < kLanes<int32_t>; ++l) bits |= (static_cast<uint32_t>(mask[l]) & 1u) << l;
  return bits;
#endif
}

// x in the lanes of the mask, zero in the others.
GLM_INLINE VecF keep_lanes(LaneMask mask, VecF x) {
#if defined(__AVX512F__)
  return reinterpret_cast<VecF>(_mm512_maskz_mov_ps(mask, reinterpret_cast<__m512>(x)));
#else
  return reinterpret_cast<VecF>(mask & reinterpret_cast<VecI>(x));
#endif
}

// x in the lanes l whose bit first + l is set, zero in the others.
template <class V>
GLM_INLINE V keep_bits(uint32_t bits, int first, V x) {
  using Lane = LaneOf<V>;
#if defined(__AVX512F__)
  if constexpr (sizeof(Lane) == 4) return keep_lanes(static_cast<LaneMask>(bits >> first), x);
#endif
  using Index = std::conditional_t<sizeof(Lane) == 4, int32_t, int64_t>;
  Vec<Index> bit;
  for (int l = 0; l < kLanes<Lane>; ++l) bit[l] = Index{1} << (first + l);
  return (broadcast(static_cast<Index>(bits)) & bit) == bit ? x : V{};
}

// To memory past the caches, for what is too large to be found there again: a line is not fetched before it is
// written. p is aligned to a vector. Others see it after stream_fence() and whatever else orders memory.
template <class Lane>
GLM_INLINE void stream(Lane* p, Vec<Lane> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
#elif defined(__x86_64__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(v));
#else
  store(p, v);
#endif
}

GLM_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// `count` elements, whole vectors of them, from and to what is aligned to one.
template <class T>
GLM_INLINE void stream_copy(T* out, const T* from, int64_t count) {
  constexpr int64_t kElements = kVectorBytes / sizeof(T);
  for (int64_t i = 0; i < count; i += kElements) {
    VecF bytes;
    std::memcpy(&bytes, from + i, sizeof(bytes));
    stream(reinterpret_cast<float*>(out + i), bytes);
  }
}

// a * b + c, rounded once where the machine can.
template <class V>
GLM_INLINE V fma(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, VecF>)
    return reinterpret_cast<V>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b),
                                               reinterpret_cast<__m512>(c)));
  if constexpr (std::is_same_v<V, VecD>)
    return reinterpret_cast<V>(_mm512_fmadd_pd(reinterpret_cast<__m512d>(a), reinterpret_cast<__m512d>(b),
                                               reinterpret_cast<__m512d>(c)));
#elif defined(__FMA__)
  if constexpr (std::is_same_v<V, VecF>)
    return reinterpret_cast<V>(_mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b),
                                               reinterpret_cast<__m256>(c)));
  if constexpr (std::is_same_v<V, VecD>)
    return reinterpret_cast<V>(_mm256_fmadd_pd(reinterpret_cast<__m256d>(a), reinterpret_cast<__m256d>(b),
                                               reinterpret_cast<__m256d>(c)));
#elif defined(__ARM_NEON)
  if constexpr (std::is_same_v<V, VecF>)
    return reinterpret_cast<V>(vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a),
                                         reinterpret_cast<float32x4_t>(b)));
  if constexpr (std::is_same_v<V, VecD>)
    return reinterpret_cast<V>(vfmaq_f64(reinterpret_cast<float64x2_t>(c), reinterpret_cast<float64x2_t>(a),
                                         reinterpret_cast<float64x2_t>(b)));
#endif
  return a * b + c;
}

// A NaN in either argument of max and min comes out: softmax and clamps must not swallow it.
template <class V>
GLM_INLINE V max(V a, V b) {
  return ((a > b) | (a != a)) ? a : b;
}

// The larger of a bound (never NaN) and x; x when x is NaN. One instruction, unlike max.
template <class V>
GLM_INLINE V at_least(V bound, V x) {
  return bound > x ? bound : x;
}

template <class V>
GLM_INLINE V at_most(V bound, V x) {
  return bound < x ? bound : x;
}

// Sum and maximum over the lanes, halving: the same order on every call.
template <class V>
GLM_INLINE LaneOf<V> reduce_add(V v) {
  LaneOf<V> lanes[kLanes<LaneOf<V>>];
  store(lanes, v);
  for (int half = kLanes<LaneOf<V>> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

template <class V>
GLM_INLINE LaneOf<V> reduce_max(V v) {
  LaneOf<V> lanes[kLanes<LaneOf<V>>];
  store(lanes, v);
  for (int half = kLanes<LaneOf<V>> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i)
      lanes[i] = lanes[i] > lanes[i + half] || lanes[i] != lanes[i] ? lanes[i] : lanes[i + half];
  }
  return lanes[0];
}

// ------------------------------------------------------------------------------------------------ storage

// kLanes values of storage type T, widened; and back, rounded to nearest even.
template <class T>
GLM_INLINE Vec<Compute<T>> load_as(const T* p) {
  if constexpr (std::is_same_v<T, bf16>) {
#if defined(__AVX512F__)
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return reinterpret_cast<VecF>(_mm512_slli_epi32(wide, 16));
#elif defined(__AVX2__)
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return reinterpret_cast<VecF>(_mm256_slli_epi32(wide, 16));
#else
    VecF v = {};
    for (int i = 0; i < kLanes<float>; ++i) v[i] = to_float(p[i]);
    return v;
#endif
  } else if constexpr (std::is_same_v<T, f16>) {
#if defined(__AVX512F__)
    return reinterpret_cast<VecF>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__AVX2__)
    return reinterpret_cast<VecF>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__ARM_NEON)
    return reinterpret_cast<VecF>(
        vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)))));
#else
    VecF v = {};
    for (int i = 0; i < kLanes<float>; ++i) v[i] = to_float(p[i]);
    return v;
#endif
  } else {
    return load(p);
  }
}

template <class T>
GLM_INLINE void store_as(T* p, Vec<Compute<T>> v) {
  if constexpr (std::is_same_v<T, bf16>) {
    const VecU bits = reinterpret_cast<VecU>(v);
    const VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const VecU nan = (bits >> 16) | 0x40u;
    const VecU out = (bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(out)));
#elif defined(__AVX2__)
    const __m256i packed =
        _mm256_packus_epi32(reinterpret_cast<__m256i>(out), reinterpret_cast<__m256i>(out));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#else
    for (int i = 0; i < kLanes<float>; ++i) p[i].bits = static_cast<uint16_t>(out[i]);
#endif
  } else if constexpr (std::is_same_v<T, f16>) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__ARM_NEON)
    vst1_u16(reinterpret_cast<uint16_t*>(p),
             vreinterpret_u16_f16(vcvt_f16_f32(reinterpret_cast<float32x4_t>(v))));
#else
    for (int i = 0; i < kLanes<float>; ++i) p[i] = to_f16(v[i]);
#endif
  } else {
    store(p, v);
  }
}

template <class T>
GLM_INLINE Vec<Compute<T>> load_as_first(const T* p, int count) {
  if constexpr (std::is_same_v<T, Compute<T>>) return load_first(p, count);
  T lanes[kLanes<Compute<T>>] = {};
  std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(T));
  return load_as(lanes);
}

template <class T>
GLM_INLINE void store_as_first(T* p, Vec<Compute<T>> v, int count) {
  if constexpr (std::is_same_v<T, Compute<T>>) return store_first(p, v, count);
  T lanes[kLanes<Compute<T>>];
  store_as(lanes, v);
  std::memcpy(p, lanes, static_cast<size_t>(count) * sizeof(T));
}

// The same for a count that is mostly kLanes.
template <class T>
GLM_INLINE Vec<Compute<T>> load_as_some(const T* p, int count) {
  return count == kLanes<Compute<T>> ? load_as(p) : load_as_first(p, count);
}

template <class T>
GLM_INLINE void store_as_some(T* p, Vec<Compute<T>> v, int count) {
  if (count == kLanes<Compute<T>>) {
    store_as(p, v);
  } else {
    store_as_first(p, v, count);
  }
}

// A single storage value, for scalars such as a bias or a broadcast.
template <class T>
GLM_INLINE Compute<T> load_one(const T* p) {
  if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>) {
    return to_float(*p);
  } else {
    return *p;
  }
}

// ------------------------------------------------------------------------------------- exponential

// 2^f for |f| <= 1/2: a polynomial 1 + c1 f + ... + c5 f^5 of least relative error (1.1e-7; 1.7e-7 with the
// roundings, docs/math.md section 11).
GLM_INLINE VecF exp2_fraction(VecF f) {
  VecF p = broadcast(0.001326472731f);
  p = fma(p, f, broadcast(0.009671512991f));
  p = fma(p, f, broadcast(0.05550733581f));
  p = fma(p, f, broadcast(0.2402224243f));
  p = fma(p, f, broadcast(0.6931470037f));
  return fma(p, f, broadcast(1.0f));
}

// 2^x for x < 128 or NaN, as softmax needs it: 2^f with n added to the exponent, x = n + f. Exactly 0 for
// -infinity, so a masked score costs nothing more; NaN stays NaN. AVX-512 has instructions for n, f and the
// product, also where it is subnormal; elsewhere it is 0 below -126.5.
GLM_INLINE VecF exp2_below_128(VecF x) {
#if defined(__AVX512DQ__)
  // With a mask of all lanes, since GCC 12 warns of its own intrinsics without one (GCC bug 105593).
  constexpr __mmask16 kAll = 0xffff;
  const __m512 n = _mm512_maskz_roundscale_ps(kAll, reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT);
  const VecF p = exp2_fraction(x - reinterpret_cast<VecF>(n));  // NaN for an infinity, but scalef makes it 0
  return reinterpret_cast<VecF>(_mm512_maskz_scalef_ps(kAll, reinterpret_cast<__m512>(p), n));
#else
  constexpr float kMagic = 12582912.0f + 127.0f;  // adding 1.5 * 2^23 + 127 leaves n + 127 in the low bits
  const VecF clamped = at_least(broadcast(-127.0f), x);
  const VecF shifted = clamped + kMagic;
  const VecF p = exp2_fraction(clamped - (shifted - kMagic));
  return p * reinterpret_cast<VecF>(reinterpret_cast<VecI>(shifted) << 23);
#endif
}

// Double is for gradient checks: the library's exp2, lane by lane.
GLM_INLINE VecD exp2_below_128(VecD x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp2(x[i]);
  return x;
}

inline constexpr double kLog2E = 1.44269504088896340736;
inline constexpr double kLn2 = 0.69314718055994530942;

}  // namespace glm::cpu::GLM_ISA
