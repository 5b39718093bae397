// Philox for a vector of consecutive counters, and the dropout masks made from it. Same numbers as
// core/philox.h.
#pragma once

#include "core/philox.h"
#include "cpu/simd.h"

namespace glm::cpu::GLM_ISA {

using VecW = Vec<uint64_t>;

// The 64-bit product of the lower half of each lane with b.
GLM_INLINE VecW multiply_lower(VecW a, uint32_t b) {
#if defined(__AVX512F__)
  return reinterpret_cast<VecW>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(a), _mm512_set1_epi64(static_cast<int64_t>(b))));
#elif defined(__AVX2__)
  return reinterpret_cast<VecW>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(static_cast<int64_t>(b))));
#elif defined(__SSE2__)
  return reinterpret_cast<VecW>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(a), _mm_set1_epi64x(static_cast<int64_t>(b))));
#elif defined(__ARM_NEON)
  return reinterpret_cast<VecW>(vmull_u32(vmovn_u64(reinterpret_cast<uint64x2_t>(a)), vdup_n_u32(b)));
#else
  return (a & 0xffffffffu) * b;
#endif
}

// The low and high words of kLanes products of 32 bits.
GLM_INLINE void multiply_wide(VecU a, uint32_t b, VecU& low, VecU& high) {
#if defined(__AVX512F__)
  const __m512i x = reinterpret_cast<__m512i>(a), y = _mm512_set1_epi32(static_cast<int>(b));
  const __m512i even = _mm512_mul_epu32(x, y);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), y);
  low = reinterpret_cast<VecU>(_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32)));
  high = reinterpret_cast<VecU>(_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd));
#elif defined(__AVX2__)
  const __m256i x = reinterpret_cast<__m256i>(a), y = _mm256_set1_epi32(static_cast<int>(b));
  const __m256i even = _mm256_mul_epu32(x, y);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), y);
  low = reinterpret_cast<VecU>(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA));
  high = reinterpret_cast<VecU>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA));
#else
  for (int i = 0; i < kLanes<uint32_t>; ++i) {
    const uint64_t product = static_cast<uint64_t>(a[i]) * b;
    low[i] = static_cast<uint32_t>(product);
    high[i] = static_cast<uint32_t>(product >> 32);
  }
#endif
}

struct PhiloxVectors {
  VecU word[4];
};

// x, x + 1, x + 2, ...
GLM_INLINE VecU count_from(uint32_t x) {
  VecU lanes = {};
  for (int i = 0; i < kLanes<uint32_t>; ++i) lanes[i] = static_cast<uint32_t>(i);
  return lanes + x;
}

// Each lane its own counter.
GLM_INLINE PhiloxVectors philox_vectors(uint64_t seed, VecU x0, VecU x1, VecU x2, VecU x3) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 8
  for (int round = 0; round < kPhiloxRounds; ++round) {
    VecU low0, high0, low1, high1;
    multiply_wide(x0, kPhiloxMultiplier0, low0, high0);
    multiply_wide(x2, kPhiloxMultiplier1, low1, high1);
    x0 = high1 ^ x1 ^ key0;
    x1 = low1;
    x2 = high0 ^ x3 ^ key1;
    x3 = low0;
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return {{x0, x1, x2, x3}};
}

struct PhiloxHalf {
  VecW word[4];  // in the lower halves; the upper halves mean nothing
};

// Lane l has counter (c0 + 2 l, c1, c2, c3). A lane of 64 bits is what a multiplication of 32 bits gives and
// the next one takes: nothing is packed or unpacked between the rounds. In each of the first two rounds one
// of the two products is the same in all lanes.
GLM_INLINE PhiloxHalf philox_half(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  VecW x0;
  for (int i = 0; i < kLanes<uint64_t>; ++i) x0[i] = c0 + 2 * static_cast<uint32_t>(i);
  uint64_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);

  const VecW first = multiply_lower(x0, kPhiloxMultiplier0);
  const uint64_t first_uniform = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
  const uint64_t y0 = static_cast<uint32_t>(first_uniform >> 32 ^ c1 ^ key0);
  VecW x2 = (first >> 32) ^ (c3 ^ key1);
  key0 += kPhiloxWeyl0;
  key1 += kPhiloxWeyl1;

  const VecW second = multiply_lower(x2, kPhiloxMultiplier1);
  const uint64_t second_uniform = kPhiloxMultiplier0 * y0;
  x0 = (second >> 32) ^ (first_uniform ^ key0);
  x2 = first ^ (second_uniform >> 32 ^ key1);
  VecW x1 = second, x3 = broadcast(second_uniform);

#pragma GCC unroll 8
  for (int round = 2; round < kPhiloxRounds; ++round) {
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
    const VecW product0 = multiply_lower(x0, kPhiloxMultiplier0);
    const VecW product1 = multiply_lower(x2, kPhiloxMultiplier1);
    x0 = (product1 >> 32) ^ x1 ^ key0;
    x1 = product1;
    x2 = (product0 >> 32) ^ x3 ^ key1;
    x3 = product0;
  }
  return {{x0, x1, x2, x3}};
}

// Lane l has counter (c0 + l, c1, c2, c3).
GLM_INLINE PhiloxVectors philox_lanes(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  const PhiloxHalf even = philox_half(seed, c0, c1, c2, c3), odd = philox_half(seed, c0 + 1, c1, c2, c3);
  PhiloxVectors out;
  for (int w = 0; w < 4; ++w)
    out.word[w] = reinterpret_cast<VecU>((even.word[w] & 0xffffffffu) | (odd.word[w] << 32));
  return out;
}

inline constexpr int64_t kDropoutChunk = 128;  // columns of a row that share Philox counters

struct RowDropout {
  uint64_t seed;
  VecI threshold;
  double scale;

  explicit RowDropout(const Dropout& dropout)
      : seed(dropout.seed),
        threshold(broadcast(static_cast<int32_t>(dropout.threshold()))),
        scale(dropout.scale()) {}

  // factor[k]: scale where column e + k of row n is kept, else 0, for k < kDropoutChunk; e is a multiple of
  // it. C is float or double.
  template <class C>
  GLM_INLINE void factors(int64_t n, int64_t e, C* factor) const {
    constexpr int kStep = kLanes<uint32_t>;  // 4, 8 or 16: divides the 16 counters of a chunk
    for (int lane = 0; lane < 16; lane += kStep) {
      const PhiloxVectors words =
          philox_lanes(seed, static_cast<uint32_t>(e / kDropoutChunk * 16 + lane), static_cast<uint32_t>(n),
                       static_cast<uint32_t>(static_cast<uint64_t>(n) >> 32), 0u);
      for (int t = 0; t < 8; ++t) {
        const VecU number = t % 2 ? words.word[t / 2] >> 16 : words.word[t / 2] & 0xffffu;
        const VecI keep = reinterpret_cast<VecI>(number) < threshold;
        if constexpr (std::is_same_v<C, float>) {
          const VecF kept =
              reinterpret_cast<VecF>(keep & reinterpret_cast<VecI>(broadcast(static_cast<float>(scale))));
          store(factor + t * 16 + lane, kept);
        } else {
          for (int i = 0; i < kStep; ++i) factor[t * 16 + lane + i] = keep[i] ? scale : 0.0;
        }
      }
    }
  }
};

// Which attention probabilities of one head are kept, a vector of queries at a time. Lanes are row counters
// (core/philox.h): word w of lane l belongs to key j + 16 w and, its low half, to query i0 + l / 8 * 16 + l % 8,
// its high half to the query eight further on.
struct AttentionDropout {
  uint64_t seed;
  uint32_t head, sequence;
  uint32_t threshold;

  AttentionDropout(const Dropout& dropout, int64_t b, int64_t h)
      : seed(dropout.seed),
        head(static_cast<uint32_t>(h)),
        sequence(static_cast<uint32_t>(b)),
        threshold(dropout.threshold()) {}

  // The lanes' counters start at `row_counter` = i / 16 * 8 + i % 8; 16 divides j / 64 * 64 + ... of the key.
  GLM_INLINE PhiloxVectors numbers(uint32_t row_counter, int64_t j) const {
    return philox_vectors(seed, broadcast(static_cast<uint32_t>(j / 64 * 16 + j % 16)), count_from(row_counter),
                          broadcast(head), broadcast(sequence));
  }

  // Kept elements of x, zero elsewhere; `number` is a word of numbers(), kHigh its half.
  template <bool kHigh>
  GLM_INLINE VecF keep(VecU word, VecF x) const {
    const VecI number = reinterpret_cast<VecI>(kHigh ? word >> 16 : word & 0xffffu);
    const VecI kept = number < static_cast<int32_t>(threshold);
    return reinterpret_cast<VecF>(kept & reinterpret_cast<VecI>(x));
  }
};

}  // namespace glm::cpu::GLM_ISA
