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

struct PhiloxVectors {
  VecU word[4];
};

// Half of the lanes, 64 bits each: what a multiplication of 32 bits gives and the next one takes, so nothing
// is packed or unpacked between the rounds. Numbers are in the lower halves; the upper halves mean nothing.
struct PhiloxHalf {
  VecW word[4];
};

// x, x + 2, x + 4, ...
GLM_INLINE VecW every_other_from(uint32_t x) {
  VecW lanes = {};
  for (int i = 0; i < kLanes<uint64_t>; ++i) lanes[i] = 2 * static_cast<uint64_t>(i);
  return lanes + x;
}

// kRounds rounds on (x0, x1, x2, x3), of which x0 alone differs between the lanes: one of the two products of
// each of the first two rounds is the same in all of them.
template <int kRounds>
GLM_INLINE PhiloxHalf philox_half(uint32_t key0, uint32_t key1, VecW x0, uint32_t x1, uint32_t x2,
                                  uint32_t x3) {
  const VecW first = multiply_lower(x0, kPhiloxMultiplier0);
  const uint64_t first_uniform = static_cast<uint64_t>(kPhiloxMultiplier1) * x2;
  const uint32_t y0 = static_cast<uint32_t>(first_uniform >> 32) ^ x1 ^ key0;
  VecW v2 = (first >> 32) ^ (x3 ^ key1);
  key0 += kPhiloxWeyl0;
  key1 += kPhiloxWeyl1;

  const VecW second = multiply_lower(v2, kPhiloxMultiplier1);
  const uint64_t second_uniform = static_cast<uint64_t>(kPhiloxMultiplier0) * y0;
  VecW v0 = (second >> 32) ^ (first_uniform ^ key0);
  v2 = first ^ (second_uniform >> 32 ^ key1);
  VecW v1 = second, v3 = broadcast(second_uniform);

#pragma GCC unroll 8
  for (int round = 2; round < kRounds; ++round) {
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
    const VecW product0 = multiply_lower(v0, kPhiloxMultiplier0);
    const VecW product1 = multiply_lower(v2, kPhiloxMultiplier1);
    v0 = (product1 >> 32) ^ v1 ^ key0;
    v1 = product1;
    v2 = (product0 >> 32) ^ v3 ^ key1;
    v3 = product0;
  }
  return {{v0, v1, v2, v3}};
}

GLM_INLINE PhiloxVectors interleave(const PhiloxHalf& even, const PhiloxHalf& odd) {
  PhiloxVectors out;
  for (int w = 0; w < 4; ++w)
    out.word[w] = reinterpret_cast<VecU>((even.word[w] & 0xffffffffu) | (odd.word[w] << 32));
  return out;
}

// Lane l has counter (c0 + l, c1, c2, c3).
GLM_INLINE PhiloxVectors philox_along_c0(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  const uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  return interleave(philox_half<kPhiloxRounds>(key0, key1, every_other_from(c0), c1, c2, c3),
                    philox_half<kPhiloxRounds>(key0, key1, every_other_from(c0 + 1), c1, c2, c3));
}

// Lane l has counter (c0, c1 + l, c2, c3). One round makes x0 the word that differs between the lanes.
GLM_INLINE PhiloxVectors philox_along_c1(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  const uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
  const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
  const uint64_t mix = (product1 >> 32) ^ key0;
  const uint32_t x1 = static_cast<uint32_t>(product1), x3 = static_cast<uint32_t>(product0);
  const uint32_t x2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
  const VecW even = every_other_from(c1) ^ mix, odd = every_other_from(c1 + 1) ^ mix;
  return interleave(
      philox_half<kPhiloxRounds - 1>(key0 + kPhiloxWeyl0, key1 + kPhiloxWeyl1, even, x1, x2, x3),
      philox_half<kPhiloxRounds - 1>(key0 + kPhiloxWeyl0, key1 + kPhiloxWeyl1, odd, x1, x2, x3));
}

inline constexpr int64_t kDropoutChunk = 128;  // columns of a row that share Philox counters

// Which elements of a matrix are kept, for vectors of 16 counters of a chunk or fewer: number t of counter l
// belongs to column 16 t + l. A dropped element becomes 0 whatever it held: 0 * NaN would not be.
struct RowDropout {
  static constexpr int kNumbers = 8;  // of a counter

  uint64_t seed;
  VecU last;      // the largest number that is kept, in the upper half of a word, over a half of ones
  LaneMask some;  // all lanes; none where nothing is kept
  float scale;
  double scale64;

  explicit RowDropout(const Dropout& dropout)
      : seed(dropout.seed),
        last(broadcast((dropout.threshold() << 16) - 1)),
        some(at_most(broadcast(1u), broadcast(dropout.threshold()))),
        scale(static_cast<float>(dropout.scale())),
        scale64(dropout.scale()) {}

  // The counters from `lane` on, for row n and the chunk that begins with column e.
  GLM_INLINE PhiloxVectors numbers(int64_t n, int64_t e, int lane) const {
    return philox_along_c0(seed, static_cast<uint32_t>(e / kDropoutChunk * 16 + lane),
                           static_cast<uint32_t>(n), static_cast<uint32_t>(static_cast<uint64_t>(n) >> 32),
                           0u);
  }

  GLM_INLINE LaneMask keep(const PhiloxVectors& numbers, int t) const {
    const VecU word = numbers.word[t / 2];
    return at_most(t % 2 ? word : word << 16, last) & some;
  }

  // x dropped and scaled. A vector of doubles has half of the lanes, `first` and those after it.
  GLM_INLINE VecF dropped(VecF x, LaneMask keep, int) const { return keep_lanes(keep, x * scale); }
  GLM_INLINE VecD dropped(VecD x, LaneMask keep, int first) const {
    return keep_bits(bits_of(keep), first, x * scale64);
  }

  // Bit k % 16 of bits[k / 16]: whether column e + k of row n is kept, for the columns of the chunk.
  GLM_INLINE void draw_bits(int64_t n, int64_t e, uint16_t* bits) const {
    uint32_t drawn[kNumbers] = {};
#pragma GCC unroll 4
    for (int lane = 0; lane < 16; lane += kLanes<uint32_t>) {
      const PhiloxVectors vectors = numbers(n, e, lane);
#pragma GCC unroll 8
      for (int t = 0; t < kNumbers; ++t) drawn[t] |= bits_of(keep(vectors, t)) << lane;
    }
    for (int t = 0; t < kNumbers; ++t) bits[t] = static_cast<uint16_t>(drawn[t]);
  }

  // The same as dropped() for the columns from e + k on.
  GLM_INLINE VecF dropped_by_bits(VecF x, const uint16_t* bits, int64_t k) const {
    return keep_bits(bits[k / 16], static_cast<int>(k % 16), x * scale);
  }
  GLM_INLINE VecD dropped_by_bits(VecD x, const uint16_t* bits, int64_t k) const {
    return keep_bits(bits[k / 16], static_cast<int>(k % 16), x * scale64);
  }
};

// Which attention probabilities of one head are kept, a vector of queries at a time. Lanes are row counters
// (core/philox.h): word w of lane l belongs to key j + 16 w and, its low half, to query i0 + l / 8 * 16 + l %
// 8, its high half to the query eight further on.
struct AttentionDropout {
  uint64_t seed;
  uint32_t head, sequence;
  uint32_t threshold;

  AttentionDropout(const Dropout& dropout, int64_t b, int64_t h)
      : seed(dropout.seed),
        head(static_cast<uint32_t>(h)),
        sequence(static_cast<uint32_t>(b)),
        threshold(dropout.threshold()) {}

  // For the row counters `row_counter` + lane, where query i has row counter i / 16 * 8 + i % 8, and key j
  // with j % 64 < 16.
  GLM_INLINE PhiloxVectors numbers(uint32_t row_counter, int64_t j) const {
    return philox_along_c1(seed, static_cast<uint32_t>(j / 64 * 16 + j % 16), row_counter, head, sequence);
  }

  // Kept elements of vector kVector of the two that a word of numbers() serves, zero elsewhere. They are its
  // low and its high halves; with 16 lanes, both halves of the first and of the last 8 lanes, so that
  // queries ascend.
  template <int kVector>
  GLM_INLINE VecF keep(VecU word, VecF x) const {
#if defined(__AVX512BW__)
    VecU half = {};
    for (uint32_t lane = 0; lane < 16; ++lane) half[lane] = 2 * (8 * kVector + lane % 8) + lane / 8;
    const VecI number = reinterpret_cast<VecI>(_mm512_maskz_permutexvar_epi16(
        0x55555555u, reinterpret_cast<__m512i>(half), reinterpret_cast<__m512i>(word)));
#else
    const VecI number = reinterpret_cast<VecI>(kVector ? word >> 16 : word & 0xffffu);
#endif
    const VecI kept = number < static_cast<int32_t>(threshold);
    return reinterpret_cast<VecF>(kept & reinterpret_cast<VecI>(x));
  }
};

}  // namespace glm::cpu::GLM_ISA
