// 16-bit storage types, every value: widened by what the bits mean, rounded to the nearest with ties to even.
#include "core/dtype.h"

#include <cmath>
#include <limits>

#include "tests/core/tests.h"
#include "tests/expect.h"

namespace glm::test {
namespace {

// The number that `exponent_bits` and `mantissa_bits` after a sign mean (IEEE 754, section 3.4).
double decoded(uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1),
            bias = (1 << (exponent_bits - 1)) - 1;
  const double fraction = std::ldexp(bits & ((1 << mantissa_bits) - 1), -mantissa_bits);
  const double sign = bits >> 15 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1)
    return fraction == 0.0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias)
                       : sign * std::ldexp(1.0 + fraction, exponent - bias);
}

// Every value of T comes back; between each two neighbours, the middle goes to the even one and what lies
// beside it to the nearer one. Past the largest, half a step decides between it and infinity.
template <class T, class Round>
void every_value(int exponent_bits, int mantissa_bits, const Round& round) {
  const uint16_t infinity = static_cast<uint16_t>(((1 << exponent_bits) - 1) << mantissa_bits);
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const T value{static_cast<uint16_t>(bits)};
    const double meant = decoded(value.bits, exponent_bits, mantissa_bits);
    const float wide = to_float(value);
    if (std::isnan(meant)) {
      expect(std::isnan(wide), "a NaN widens to a NaN");
      expect(std::isnan(to_float(round(wide))), "a NaN is rounded to a NaN");
      continue;
    }
    expect(wide == meant && std::signbit(wide) == std::signbit(meant), "widened");
    expect(round(wide).bits == value.bits, "rounded back");
    if ((bits & 0x7fffu) >= infinity) continue;
    const T next{static_cast<uint16_t>(bits + 1)};  // further from zero
    const double step = decoded(static_cast<uint16_t>(infinity - 1), exponent_bits, mantissa_bits) -
                        decoded(static_cast<uint16_t>(infinity - 2), exponent_bits, mantissa_bits);
    const double next_meant = (next.bits & 0x7fffu) == infinity
                                  ? std::copysign(std::abs(meant) + step, meant)
                                  : decoded(next.bits, exponent_bits, mantissa_bits);
    const float middle = static_cast<float>((meant + next_meant) / 2);
    expect(round(middle).bits == (bits % 2 == 0 ? value.bits : next.bits), "a tie goes to the even one");
    expect(round(std::nextafterf(middle, 0.0f)).bits == value.bits, "below the middle");
    expect(round(std::nextafterf(middle, std::copysign(INFINITY, middle))).bits == next.bits,
           "above the middle");
  }
  expect((round(std::numeric_limits<float>::max()).bits) == infinity, "overflow");
  expect((round(-std::numeric_limits<float>::infinity()).bits) == (infinity | 0x8000u), "-infinity");
  // A NaN whose payload lies in the bits that are cut off.
  expect(std::isnan(to_float(round(std::bit_cast<float>(0x7f800001u)))), "a NaN with a low payload");
}

}  // namespace

void test_dtype() {
  every_value<bf16>(8, 7, [](float x) { return to_bf16(x); });
  every_value<f16>(5, 10, [](float x) { return to_f16(x); });
}

}  // namespace glm::test
