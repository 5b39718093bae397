// Operands of gemm.h, and their packing into panels: kWidth elements of the index i side by side, for each k.
//
// An operand says what element (i, k) is:
//   depth_contiguous()              whether elements along k, rather than along i, lie side by side in memory
//   load<kAlongDepth>(i, k, count)  `count` elements from (i, k) along k or along i, the other lanes zero
#pragma once

#include <algorithm>

#include "cpu/simd.h"

namespace glm::cpu::GLM_ISA {

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

// A matrix in memory, any strides: element (i, k) is data[i * stride + k * depth_stride]. Row-major
// x[rows][depth] is {x, depth, 1}; w[depth][cols] as the right side of a product is {w, 1, cols}.
template <class T>
struct Operand {
  const T* data;
  int64_t stride, depth_stride;

  GLM_INLINE bool depth_contiguous() const { return depth_stride == 1; }

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

// function(vector) of each element of an operand.
template <class Inner, class Function>
struct Mapped {
  Inner inner;
  Function function;

  GLM_INLINE bool depth_contiguous() const { return inner.depth_contiguous(); }

  template <bool kAlongDepth>
  GLM_INLINE auto load(int64_t i, int64_t k, int count) const {
    return function(inner.template load<kAlongDepth>(i, k, count));
  }
};
template <class Inner, class Function>
Mapped(Inner, Function) -> Mapped<Inner, Function>;

// rows[i][j] <-> rows[j][i]: log2(lanes) perfect shuffles.
template <class C>
GLM_INLINE void transpose(Vec<C> (&rows)[kLanes<C>]) {
  using Index = Vec<std::conditional_t<sizeof(C) == 4, int32_t, int64_t>>;
  constexpr int n = kLanes<C>;
  Index low = {}, high = {};
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) {
    low[i] = i / 2 + i % 2 * n;
    high[i] = n / 2 + i / 2 + i % 2 * n;
  }
#pragma GCC unroll 4
  for (int width = n; width > 1; width /= 2) {
    Vec<C> next[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = __builtin_shuffle(rows[i], rows[i + n / 2], low);
      next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + n / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = next[i];
  }
}

// Elements [first, first + valid) x [k, k + steps) of x into out[steps][kWidth]; steps <= kLanes.
template <class C, int kWidth, bool kAlongDepth, class Source>
GLM_INLINE void pack_steps(const Source& x, int64_t first, int valid, int64_t k, int steps, C* out) {
#pragma GCC unroll 4
  for (int group = 0; group < kWidth; group += kLanes<C>) {
    constexpr int kLast = kWidth % kLanes<C> == 0 ? kLanes<C> : kWidth % kLanes<C>;
    const int kept = group + kLanes<C> <= kWidth ? kLanes<C> : kLast;
    const int present = std::clamp(valid - group, 0, kept);
    if constexpr (kAlongDepth) {
      Vec<C> rows[kLanes<C>];
      for (int i = 0; i < kLanes<C>; ++i)
        rows[i] = i < present ? x.template load<true>(first + group + i, k, steps) : Vec<C>{};
      transpose<C>(rows);
      for (int n = 0; n < steps; ++n) store_as_some(out + n * kWidth + group, rows[n], kept);
    } else {
      for (int n = 0; n < steps; ++n)
        store_as_some(out + n * kWidth + group,
                      present > 0 ? x.template load<false>(first + group, k + n, present) : Vec<C>{}, kept);
    }
  }
}

// Panels [panel0, panel0 + panels) of the `size` elements from `first` on, k in [k0, k0 + depth). Panel p
// lies at out + p * kWidth * depth; what a last panel has beyond `size` is zero.
template <class C, int kWidth, class Source>
void pack_panels(const Source& x, int64_t first, int64_t size, int64_t panel0, int64_t panels, int64_t k0,
                 int64_t depth, C* out) {
  const auto pack = [&]<bool kAlongDepth>(std::bool_constant<kAlongDepth>, int64_t panel, int64_t k) {
    const int64_t i = panel * kWidth;
    const int steps = static_cast<int>(std::min<int64_t>(kLanes<C>, depth - k));
    const int valid = static_cast<int>(std::min<int64_t>(kWidth, size - i));
    pack_steps<C, kWidth, kAlongDepth>(x, first + i, valid, k0 + k, steps, out + i * depth + k * kWidth);
  };
  const int64_t end = std::min(panel0 + panels, (size + kWidth - 1) / kWidth);
  if (x.depth_contiguous()) {
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
