// Operands of gemm.h, and their packing into panels: kWidth elements of the index i side by side, for each k.
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/simd.h"

namespace glm::cpu::GLM_ISA {

// A matrix in memory, or a function of one, any strides: element (i, k) is data[i * stride + k *
// depth_stride]. Row-major x[rows][depth] is {x, depth, 1}; w[depth][cols] as the right side of a product is
// {w, 1, cols}.
template <class T>
struct Operand {
  const T* data;
  int64_t stride, depth_stride;
  // Of each element, null or applied in place to what was packed; 0 must stay 0.
  void (*function)(Compute<T>* values, int64_t count) = nullptr;

  // `count` elements from (i, k) along k or along i, the other lanes zero.
  template <bool kAlongDepth>
  GLM_INLINE Vec<Compute<T>> load(int64_t i, int64_t k, int count) const {
    const T* p = data + i * stride + k * depth_stride;
    const int64_t step = kAlongDepth ? depth_stride : stride;
    if (step == 1) return load_as_some(p, count);
    Compute<T> lanes[kLanes<Compute<T>>] = {};
    for (int n = 0; n < count; ++n) lanes[n] = load_one(p + n * step);
    return glm::cpu::GLM_ISA::load(lanes);
  }
};

// The lower halves of a and b, lane by lane in turn; or the upper ones.
template <bool kUpper, class V, size_t... kLane>
GLM_INLINE V interleave(V a, V b, std::index_sequence<kLane...>) {
  constexpr size_t n = sizeof...(kLane), first = kUpper ? n / 2 : 0;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, static_cast<int>(first + kLane / 2 + kLane % 2 * n)...);
#else
  using Index = Vec<std::conditional_t<sizeof(LaneOf<V>) == 4, int32_t, int64_t>>;
  return __builtin_shuffle(a, b, Index{static_cast<LaneOf<Index>>(first + kLane / 2 + kLane % 2 * n)...});
#endif
}

// rows[i][j] <-> rows[j][i]: log2(lanes) perfect shuffles.
template <class C>
GLM_INLINE void transpose(Vec<C> (&rows)[kLanes<C>]) {
  constexpr int n = kLanes<C>;
  constexpr auto kEach = std::make_index_sequence<n>();
#pragma GCC unroll 4
  for (int width = n; width > 1; width /= 2) {
    Vec<C> next[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = interleave<false>(rows[i], rows[i + n / 2], kEach);
      next[2 * i + 1] = interleave<true>(rows[i], rows[i + n / 2], kEach);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = next[i];
  }
}

// Elements [first, first + valid) x [k, k + steps) of x into out[steps][kWidth]; steps <= kLanes. This is
// lanes [kFirst, kFirst + kCount) of it: sizes that the compiler knows are worth a path of their own.
template <int kWidth, int kFirst, bool kAlongDepth, class T, class C = Compute<T>>
GLM_INLINE void pack_lanes(const Operand<T>& x, int64_t first, int valid, int64_t k, int steps, C* out) {
  constexpr int kCount = std::min(kLanes<C>, kWidth - kFirst);
  first += kFirst, valid -= kFirst, out += kFirst;
  if constexpr (kAlongDepth) {
    constexpr int kAhead = 128 / sizeof(T);  // more rows than the processor's own prefetch follows
    for (int i = 0; i < std::min(valid, kCount); ++i)
      __builtin_prefetch(x.data + (first + i) * x.stride + k + kAhead);
    Vec<C> rows[kLanes<C>];
    for (int i = 0; i < kLanes<C>; ++i)
      rows[i] = i < std::min(valid, kCount) ? x.template load<true>(first + i, k, steps) : Vec<C>{};
    transpose<C>(rows);
    for (int n = 0; n < steps; ++n) store_as_some(out + n * kWidth, rows[n], kCount);
  } else if (valid >= kCount) {
    for (int n = 0; n < steps; ++n)
      store_as_some(out + n * kWidth, x.template load<false>(first, k + n, kCount), kCount);
  } else {
    for (int n = 0; n < steps; ++n)
      store_as_some(out + n * kWidth, valid > 0 ? x.template load<false>(first, k + n, valid) : Vec<C>{},
                    kCount);
  }
}

template <int kWidth, bool kAlongDepth, class T, class C = Compute<T>>
GLM_INLINE void pack_steps(const Operand<T>& x, int64_t first, int valid, int64_t k, int steps, C* out) {
  constexpr int kGroups = (kWidth + kLanes<C> - 1) / kLanes<C>;
  [&]<int... kGroup>(std::integer_sequence<int, kGroup...>) {
    (pack_lanes<kWidth, kGroup * kLanes<C>, kAlongDepth>(x, first, valid, k, steps, out), ...);
  }(std::make_integer_sequence<int, kGroups>{});
}

// Panels [panel0, panel0 + panels) of the `size` elements from `first` on, k in [k0, k0 + depth). Panel p
// lies at out + p * kWidth * depth; what a last panel has beyond `size` is zero.
template <int kWidth, class T, class C = Compute<T>>
[[gnu::noinline]] void pack_panels(const Operand<T>& x, int64_t first, int64_t size, int64_t panel0,
                                   int64_t panels, int64_t k0, int64_t depth, C* out) {
  const auto pack = [&]<bool kAlongDepth>(std::bool_constant<kAlongDepth>, int64_t panel, int64_t k) {
    const int64_t i = panel * kWidth;
    const int steps = static_cast<int>(std::min<int64_t>(kLanes<C>, depth - k));
    const int valid = static_cast<int>(std::min<int64_t>(kWidth, size - i));
    C* const packed = out + i * depth + k * kWidth;
    pack_steps<kWidth, kAlongDepth>(x, first + i, valid, k0 + k, steps, packed);
    if (x.function) x.function(packed, steps * kWidth);
  };
  const int64_t end = std::min(panel0 + panels, (size + kWidth - 1) / kWidth);
  if (x.depth_stride == 1) {
    for (int64_t panel = panel0; panel < end; ++panel) {
      for (int64_t k = 0; k < depth; k += kLanes<C>) pack(std::true_type{}, panel, k);
    }
  } else {  // a few k of all panels at a time: long runs of memory, few pages
    for (int64_t k = 0; k < depth; k += kLanes<C>) {
      for (int64_t panel = panel0; panel < end; ++panel) pack(std::false_type{}, panel, k);
    }
  }
}

}  // namespace glm::cpu::GLM_ISA
