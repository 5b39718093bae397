#include "core/gelu.h"

#include "tests/core/tests.h"
#include "tests/expect.h"

namespace glm::test {

void test_gelu() {
  for (const Gelu kind : {Gelu::tanh, Gelu::erf}) {
    for (double x = -12.0; x <= 12.0; x += 0.0625) {
      const double h = 1e-5;
      const double slope = (gelu(x + h, kind) - gelu(x - h, kind)) / (2 * h);
      expect_near(gelu_grad(x, kind), slope, 1e-9, "gelu_grad against a central difference");
      expect_near(gelu(x, kind) - gelu(-x, kind), x, 1e-12, "gelu(x) - gelu(-x) = x");
      expect_near(gelu(static_cast<float>(x), kind), gelu(x, kind), 1e-6 * (1 + std::abs(x)), "float");
    }
    expect(gelu(0.0, kind) == 0.0 && gelu_grad(0.0, kind) == 0.5, "at zero");
    expect(std::isnan(gelu(std::nan(""), kind)) && std::isnan(gelu_grad(std::nan(""), kind)), "NaN stays");
  }
  // x Phi(x) at x = 1: Phi(1) = 0.841344746068542949 (Abramowitz & Stegun, table 26.1).
  expect_near(gelu(1.0, Gelu::erf), 0.841344746068542949, 1e-15, "erf form at 1");
  // The two forms differ by less than 5e-4 everywhere, and do differ.
  expect_near(gelu(1.0, Gelu::tanh), gelu(1.0, Gelu::erf), 5e-4, "tanh form at 1");
  expect(gelu(1.0, Gelu::tanh) != gelu(1.0, Gelu::erf), "the two forms differ");
}

}  // namespace glm::test
