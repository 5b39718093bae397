// The host bodies of cuda/ptx.cuh; what each does is said there. Fragment layouts are those of the PTX ISA,
// "Matrix multiply-accumulate instructions".
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/dtype.h"
#include "simt/counters.h"
#include "simt/cuda.h"
#include "simt/memory.h"

namespace glm::cuda {

using simt::Site;

// ---- memory
// --------------------------------------------------------------------------------------------------

template <class T>
T load_global(const T* pointer, Site site = Site::current()) {
  simt::global_memory().check(pointer, sizeof(T), site);
  simt::counters().access(simt::Space::global, pointer, sizeof(T), site);
  return *pointer;
}

template <class T>
void store_global(T* pointer, T value, Site site = Site::current()) {
  simt::global_memory().check(pointer, sizeof(T), site);
  simt::counters().access(simt::Space::global, pointer, sizeof(T), site);
  *pointer = value;
}

inline void add_global(float* pointer, float value, Site site = Site::current()) {
  simt::global_memory().check(pointer, sizeof(float), site);
  simt::counters().access(simt::Space::global, pointer, sizeof(float), site);
  *pointer += value;
}

inline int thread_of_this_turn() { return static_cast<int>(threadIdx.x); }

inline int fetch_add_global(int* pointer, int value, Site site = Site::current()) {
  simt::global_memory().check(pointer, sizeof(int), site);
  simt::counters().access(simt::Space::global, pointer, sizeof(int), site);
  return std::exchange(*pointer, *pointer + value);
}

template <class Shared>
Shared& shared_memory() {
  return *reinterpret_cast<Shared*>(simt::machine().shared().data());
}

template <class T>
T load_shared(const T* pointer, Site site = Site::current()) {
  simt::machine().shared().read(pointer, sizeof(T), site);
  simt::counters().access(simt::Space::shared, pointer, sizeof(T), site);
  return *pointer;
}

template <class T>
void store_shared(T* pointer, T value, Site site = Site::current()) {
  simt::machine().shared().write(pointer, sizeof(T), site);
  simt::counters().access(simt::Space::shared, pointer, sizeof(T), site);
  *pointer = value;
}

inline void copy_async(void* shared, const void* global, bool valid, Site site = Site::current()) {
  simt::counters().access(simt::Space::shared, shared, 16, site);
  if (valid) {
    simt::global_memory().check(global, 16, site);
    simt::counters().access(simt::Space::global, global, 16, site);
  }
  simt::this_thread().copies.copy(shared, valid ? global : nullptr, 16, site);
}

inline void copy_async_commit() { simt::this_thread().copies.commit(); }

template <int kGroups>
void copy_async_wait(Site site = Site::current()) {
  simt::this_thread().copies.wait_all_but(kGroups, site);
}

// ---- matrices
// ------------------------------------------------------------------------------------------------

template <int kCount, bool kTranspose = false>
void load_matrices(uint32_t (&fragment)[kCount], const void* row, Site site = Site::current()) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  struct Slot {
    const void* row;
    uint32_t* fragment;
  } slot{row, fragment};
  simt::warp_collective("ldmatrix", simt::kFullMask, slot, site, [&](Slot* const(&lanes)[simt::kWarpSize]) {
    const int first_thread = simt::this_thread().warp * simt::kWarpSize;
    for (int matrix = 0; matrix < kCount; ++matrix) {
      const void* rows[8];
      for (int i = 0; i < 8; ++i) rows[i] = lanes[matrix * 8 + i]->row;
      simt::counters().matrix_access(rows, site);
      const auto element = [&](int reader, int i, int j) {
        const auto* place = static_cast<const uint16_t*>(rows[i]) + j;
        simt::machine().shared().read_as(first_thread + reader, place, 2, site);
        return static_cast<uint32_t>(*place);
      };
      for (int lane = 0; lane < simt::kWarpSize; ++lane) {
        if (reinterpret_cast<uintptr_t>(rows[lane / 4]) % 16 != 0)
          simt::fault(site, "ldmatrix: a row is not aligned to 16 bytes");
        const int i = lane / 4, j = lane % 4 * 2;
        lanes[lane]->fragment[matrix] = kTranspose ? element(lane, j, i) | element(lane, j + 1, i) << 16
                                                   : element(lane, i, j) | element(lane, i, j + 1) << 16;
      }
    }
  });
}

namespace detail {

struct MmaSlot {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

// How tensor cores add, as an H200 does: the products are exact; they and the accumulator are cut off 25 bits
// below the largest exponent among them, 2 more than a float keeps; what they add up to is cut off to a float.
// All cuts are towards zero. With this the kernels of attention had the errors of the H200 in float32, 18
// largest ones that its tests reported, to 6 %. (Fasi et al., "Numerical behavior of NVIDIA tensor cores",
// 2021, found the same of an A100 with fewer bits.)
inline constexpr int kMmaBits = 25;

// 2^exponent.
inline double power_of_two(int exponent) {
  return std::bit_cast<double>(static_cast<uint64_t>(1023 + exponent) << 52);
}

// The exponent of a float; of zero one so low that no sum of it and another is the largest.
inline int exponent_of(float x) {
  const int field = static_cast<int>(std::bit_cast<uint32_t>(x) >> 23 & 0xffu);
  return x == 0.0f ? -400 : field == 0 ? -126 : field - 127;
}

// A row of A, or a column of B, with the exponents of its elements.
template <int kDepth>
struct MmaLine {
  float value[kDepth];
  int exponent[kDepth];

  void set(int k, float x) {
    value[k] = x;
    exponent[k] = exponent_of(x);
  }
};

// d + a b.
template <int kDepth>
float mma_sum(float d, const MmaLine<kDepth>& a, const MmaLine<kDepth>& b) {
  int top = exponent_of(d);
  for (int k = 0; k < kDepth; ++k) top = std::max(top, a.exponent[k] + b.exponent[k]);
  if (top >= 128) {  // infinities and NaN among the operands, or a sum that may overflow
    for (int k = 0; k < kDepth; ++k) d += a.value[k] * b.value[k];
    return d;
  }
  const double scale = power_of_two(kMmaBits - top);
  double sum = std::trunc(d * scale);  // of whole numbers: exact
  for (int k = 0; k < kDepth; ++k) sum += std::trunc(static_cast<double>(a.value[k]) * b.value[k] * scale);
  const uint64_t bits = std::bit_cast<uint64_t>(sum * power_of_two(top - kMmaBits));
  return static_cast<float>(std::bit_cast<double>(bits & ~((uint64_t{1} << 29) - 1)));  // 52 - 23 bits less
}

// D [16, 8] += A [16, kDepth] B [kDepth, 8], with a(i, k), b(k, j) the operands as floats.
template <int kDepth, class A, class B>
void multiply(MmaSlot* const (&lanes)[simt::kWarpSize], const A& a, const B& b) {
  MmaLine<kDepth> left[16], right[8];
  for (int k = 0; k < kDepth; ++k) {
    for (int i = 0; i < 16; ++i) left[i].set(k, a(i, k));
    for (int j = 0; j < 8; ++j) right[j].set(k, b(k, j));
  }
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float& d = lanes[i % 8 * 4 + j / 2]->d[i / 8 * 2 + j % 2];
      d = mma_sum(d, left[i], right[j]);
    }
}

template <class T>
float half_of(uint32_t word, int which) {
  return to_float(T{static_cast<uint16_t>(word >> (16 * which))});
}

}  // namespace detail

template <class T>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::current()) {
  detail::MmaSlot slot{d, a, b};
  simt::warp_collective(
      "mma", simt::kFullMask, slot, site, [](detail::MmaSlot* const(&lanes)[simt::kWarpSize]) {
        detail::multiply<16>(
            lanes,
            [&](int i, int k) {
              return detail::half_of<T>(lanes[i % 8 * 4 + k % 8 / 2]->a[k / 8 * 2 + i / 8], k % 2);
            },
            [&](int k, int j) { return detail::half_of<T>(lanes[j * 4 + k % 8 / 2]->b[k / 8], k % 2); });
      });
}

inline void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            Site site = Site::current()) {
  detail::MmaSlot slot{d, a, b};
  simt::warp_collective(
      "mma", simt::kFullMask, slot, site, [](detail::MmaSlot* const(&lanes)[simt::kWarpSize]) {
        const auto tf32 = [](uint32_t bits) {
          return std::bit_cast<float>(bits & 0xffffe000u);
        };  // the rest is ignored
        detail::multiply<8>(
            lanes, [&](int i, int k) { return tf32(lanes[i % 8 * 4 + k % 4]->a[k / 4 * 2 + i / 8]); },
            [&](int k, int j) { return tf32(lanes[j * 4 + k % 4]->b[k / 4]); });
      });
}

// ---- numbers
// -------------------------------------------------------------------------------------------------

inline float widen(float x) { return x; }
inline float widen(bf16 x) { return to_float(x); }
inline float widen(f16 x) { return to_float(x); }

template <class T>
T narrow(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return to_bf16(x);
  } else if constexpr (std::is_same_v<T, f16>) {
    return to_f16(x);
  } else {
    return x;
  }
}

template <class T>
uint32_t narrow2(float low, float high) {
  return static_cast<uint32_t>(narrow<T>(low).bits) | static_cast<uint32_t>(narrow<T>(high).bits) << 16;
}

// To nearest, ties away from zero.
inline uint32_t to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

inline int count_bits(uint32_t x) { return std::popcount(x); }

inline float reciprocal_fast(float x) {
  const float y = 1.0f / x;
  return std::fabs(y) < 0x1p-126f ? 0.0f : y;
}

inline float exp2_fast(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}

}  // namespace glm::cuda
