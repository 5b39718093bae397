// Philox4x32-7, a counter-based random generator (Salmon et al., "Parallel random numbers: as easy as 1, 2,
// 3", SC 2011; seven rounds pass BigCrush). Dropout bits are a pure function of the seed and of the element's
// logical place, so that they are equal on every device, at every tiling, and never stored.
//
// A call gives four words, that is eight 16-bit numbers, and an element is kept when its number is below the
// threshold. Which element takes which number (E columns of row n; or key j of query i, head h, sequence b):
//
//   rows        counter = (e/128*16 + e%16, n low, n high, 0)      number t = e/16%8
//   attention   counter = (j/64*16 + j%16, i/16*8 + i%8, h, b)     number t = j/16%4*2 + i%16/8
//
// Number t is the low (t even) or high (t odd) half of word t/2. Consecutive columns lie in consecutive
// counters, hence in the lanes of a vector; an mma fragment and a 16-byte load use every number they ask for.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/check.h"

namespace glm {

inline constexpr int kPhiloxRounds = 7;
inline constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
inline constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
inline constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;

struct PhiloxWords {
  uint32_t word[4];
};

template <int kRounds = kPhiloxRounds>
GLM_HD PhiloxWords philox(uint64_t seed, PhiloxWords counter) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
    const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(product0);
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// What an op needs to know of its dropout. p = 0 costs nothing.
struct Dropout {
  double p = 0.0;
  uint64_t seed = 0;

  bool active() const { return p > 0.0; }
  uint32_t threshold() const { return static_cast<uint32_t>(std::llrint((1.0 - p) * 65536.0)); }
  double scale() const { return p < 1.0 ? 1.0 / (1.0 - p) : 0.0; }
};

// The 16-bit number of element (n, e) of a matrix.
GLM_HD uint32_t row_random(uint64_t seed, int64_t n, int64_t e) {
  const PhiloxWords words =
      philox(seed, {{static_cast<uint32_t>(e / 128 * 16 + e % 16), static_cast<uint32_t>(n),
                     static_cast<uint32_t>(static_cast<uint64_t>(n) >> 32), 0u}});
  const int t = static_cast<int>(e / 16 % 8);
  return (words.word[t / 2] >> (16 * (t % 2))) & 0xffffu;
}

// The 16-bit number of attention probability (b, h, i, j).
GLM_HD uint32_t attention_random(uint64_t seed, int64_t b, int64_t h, int64_t i, int64_t j) {
  const PhiloxWords words =
      philox(seed, {{static_cast<uint32_t>(j / 64 * 16 + j % 16), static_cast<uint32_t>(i / 16 * 8 + i % 8),
                     static_cast<uint32_t>(h), static_cast<uint32_t>(b)}});
  return (words.word[j / 16 % 4] >> (16 * (i % 16 / 8))) & 0xffffu;
}

}  // namespace glm
