#include "core/philox.h"

#include "tests/core/tests.h"
#include "tests/expect.h"

namespace glm::test {
namespace {

bool equal(const PhiloxWords& a, const PhiloxWords& b) {
  for (int i = 0; i < 4; ++i) {
    if (a.word[i] != b.word[i]) return false;
  }
  return true;
}

// Known answers published with the generator (Random123, kat_vectors: philox4x32).
void known_answers() {
  constexpr uint32_t kOnes = 0xffffffffu;
  const PhiloxWords zero = {{0, 0, 0, 0}}, ones = {{kOnes, kOnes, kOnes, kOnes}};
  const PhiloxWords pi = {{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}};
  const uint64_t pi_key = 0x299f31d0a4093822u;
  expect(equal(philox<10>(0, zero), {{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}}),
         "10 rounds, zeros");
  expect(equal(philox<10>(~uint64_t{0}, ones), {{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}}),
         "10 rounds, ones");
  expect(equal(philox<10>(pi_key, pi), {{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}}),
         "10 rounds, pi");
  expect(equal(philox<7>(0, zero), {{0x5f6fb709u, 0x0d893f64u, 0x4f121f81u, 0x4f730a48u}}),
         "7 rounds, zeros");
  expect(equal(philox(0, zero), philox<7>(0, zero)), "the ops use 7 rounds");
}

// Each element has its own 16 bits: no two of a block share a word half, and neighbours in a vector share a
// word.
void elements() {
  const uint64_t seed = 0x123456789abcdef0u;
  const PhiloxWords words = philox(seed, {{2 * 16 + 5, 7u, 1u, 0u}});  // row n = 2^32 + 7
  for (int t = 0; t < 8; ++t) {
    const uint32_t half = (words.word[t / 2] >> (16 * (t % 2))) & 0xffffu;
    expect(row_random(seed, (int64_t{1} << 32) + 7, 2 * 128 + 16 * t + 5) == half, "row element");
  }
  const PhiloxWords tile =
      philox(seed, {{3 * 16 + 9, 2 * 8 + 1, 11u, 4u}});  // columns 64.. of block 3, rows 16.. of 2
  for (int word = 0; word < 4; ++word) {
    for (int high = 0; high < 2; ++high)
      expect(attention_random(seed, 4, 11, 2 * 16 + 8 * high + 1, 3 * 64 + 16 * word + 9) ==
                 ((tile.word[word] >> (16 * high)) & 0xffffu),
             "attention element");
  }
}

void thresholds() {
  expect(Dropout{0.0, 0}.threshold() == 65536u, "p = 0 keeps all");
  expect(Dropout{1.0, 0}.threshold() == 0u, "p = 1 keeps none");
  expect(Dropout{0.1, 0}.threshold() == 58982u, "p = 0.1");
  expect(Dropout{1.0, 0}.scale() == 0.0 && Dropout{0.5, 0}.scale() == 2.0, "scale");
  expect(!Dropout{0.0, 0}.active() && Dropout{0.5, 0}.active(), "active");
}

}  // namespace

void test_philox() {
  known_answers();
  elements();
  thresholds();
}

}  // namespace glm::test
