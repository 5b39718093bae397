// What the kernel tests share: storage of a type, filled with numbers that it holds exactly, read back as
// double.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "core/dispatch.h"
#include "core/philox.h"
#include "cpu/kernels.h"
#include "tests/expect.h"

namespace glm::test {

void test_dropout_add_layer_norm();
void test_embedding_2d();
void test_gelu_mlp();
void test_linear();
void test_linear_cross_entropy();
void test_parallel();
void test_span_attention();

template <class T>
inline constexpr DType kDType = std::is_same_v<T, float>    ? DType::f32
                                : std::is_same_v<T, double> ? DType::f64
                                : std::is_same_v<T, bf16>   ? DType::bf16
                                                            : DType::f16;

// Rounding of one store, in units of the value.
template <class T>
inline constexpr double kEps = std::is_same_v<T, float>    ? 0x1p-23
                               : std::is_same_v<T, double> ? 0x1p-52
                               : std::is_same_v<T, bf16>   ? 0x1p-8
                                                           : 0x1p-11;

template <class T>
double value(T x) {
  if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>) {
    return to_float(x);
  } else {
    return x;
  }
}

template <class T>
T stored(double x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return to_bf16(static_cast<float>(x));
  } else if constexpr (std::is_same_v<T, f16>) {
    return to_f16(static_cast<float>(x));
  } else {
    return static_cast<T>(x);
  }
}

// Multiples of 1/64 in [-2, 2), which every storage type holds exactly; the same ones for the same seed.
template <class T>
std::vector<T> random(int64_t count, uint32_t seed) {
  std::vector<T> out;
  for (int64_t i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;  // Numerical Recipes' generator
    out.push_back(stored<T>((static_cast<int>(seed >> 24) - 128) / 64.0));
  }
  return out;
}

// [0, 1, ..., count) times step, modulo rows: ids that repeat and reach the last one.
inline std::vector<int64_t> ids(int64_t count, int64_t step, int64_t rows) {
  std::vector<int64_t> out;
  for (int64_t i = 0; i < count; ++i) out.push_back((i * step + rows - 1) % rows);
  return out;
}

// Whether element (n, e) of a matrix is kept, as its factor.
inline double row_factor(const Dropout& dropout, int64_t n, int64_t e) {
  if (!dropout.active()) return 1.0;
  return row_random(dropout.seed, n, e) < dropout.threshold() ? dropout.scale() : 0.0;
}

// What a kernel has to fill: a value that it leaves alone shows.
template <class T>
std::vector<T> unwritten(int64_t count) {
  return std::vector<T>(static_cast<size_t>(count), stored<T>(std::numeric_limits<double>::quiet_NaN()));
}

// Whether the kernels in force multiply T as it is and not as floats: what lies between two of their products is
// rounded to T then (cpu/packed.h).
template <class T>
bool rounds_between_products() {
  return std::is_same_v<T, bf16> && std::string(cpu::kernels().isa) == "avx512bf16";
}

// |got - wanted| within the roundings of T and, for a sum of about `terms` terms, of the type that it is
// computed in; `rounded` is the size of values rounded to T on the way.
template <class T>
void expect_close(T got, double wanted, double terms, const char* what, double rounded = 0.0, Place at = {}) {
  const double compute_eps = std::is_same_v<T, double> ? kEps<double> : kEps<float>;
  const double tolerance =
      (2 * kEps<T> + 4 * terms * compute_eps) * (1 + std::abs(wanted)) + kEps<T> * rounded;
  expect_near(value(got), wanted, tolerance, what, at);
}

// Calls test(Type<T>{}) with each storage type.
template <class Test>
void for_each_dtype(const Test& test) {
  test(Type<float>{});
  test(Type<double>{});
  test(Type<bf16>{});
  test(Type<f16>{});
}

}  // namespace glm::test
