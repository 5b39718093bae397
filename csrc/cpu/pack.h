// Operands of gemm.h, and their packing into panels: kWidth elements of the index i side by side, for each k,
// or each pair of k (cpu/packed.h).
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/packed.h"

namespace glm::cpu::GLM_ISA {

// A matrix in memory, or a function of one, any strides: element (i, k) is data[i * stride + k *
// depth_stride]. Row-major x[rows][depth] is {x, depth, 1}; w[depth][cols] as the right side of a product is
// {w, 1, cols}.
template <class T>
struct Operand {
  const T* data;
  int64_t stride, depth_stride;
  // Of each element, null or applied in place to what was packed; 0 must stay 0.
  void (*function)(Packed<T>* values, int64_t count) = nullptr;

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

  // Steps of P, along the sum or along i: what `elements` of k from k on are to be packed as, `count` of i.
  template <class P, bool kAlongDepth>
  GLM_INLINE Vec<P> load_packed(int64_t i, int64_t k, int elements, int count) const {
    if constexpr (!kIsPair<P>) {
      return load<kAlongDepth>(i, k, kAlongDepth ? elements : count);
    } else if constexpr (kAlongDepth) {
      const T* p = data + i * stride + k * depth_stride;
      if (depth_stride == 1) return load_steps<P>(p, elements);
      T lanes[kPerStep<P> * kLanes<P>] = {};
      for (int n = 0; n < elements; ++n) lanes[n] = p[n * depth_stride];
      return load_steps<P>(lanes, kPerStep<P> * kLanes<P>);
    } else {
      const T* p = data + i * stride + k * depth_stride;
      const auto one = [&](const T* from) {
        if (stride == 1) return load_bits(from, count);
        Pair lanes[kLanes<Pair>] = {};
        for (int n = 0; n < count; ++n) lanes[n] = from[n * stride].bits;
        return glm::cpu::GLM_ISA::load(lanes);
      };
      return elements > 1 ? join(one(p), one(p + depth_stride)) : one(p);
    }
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

// Lane i of the result is the sum of the lanes of x[i]: each merge halves the number of vectors.
template <class C>
GLM_INLINE Vec<C> reduce_each(Vec<C> (&x)[kLanes<C>]) {
  constexpr auto kEach = std::make_index_sequence<kLanes<C>>();
#pragma GCC unroll 4
  for (int half = kLanes<C> / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i)
      x[i] = interleave<false>(x[i], x[i + half], kEach) + interleave<true>(x[i], x[i + half], kEach);
  }
  return x[0];
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

// The steps of `depth` elements from k on, at most a vector of them, of elements [first, first + valid), into
// out[steps][kWidth], of which a vector beyond its end may be written. This is lanes [kFirst, kFirst + kCount)
// of it: sizes that the compiler knows are worth a path of their own.
template <int kWidth, int kFirst, bool kAlongDepth, class T, class P>
GLM_INLINE void pack_lanes(const Operand<T>& x, int64_t first, int valid, int64_t k, int depth, P* out) {
  constexpr int kCount = std::min(kLanes<P>, kWidth - kFirst);
  const int steps = static_cast<int>(steps_of<P>(depth));
  first += kFirst, valid -= kFirst, out += kFirst;
  const auto put = [&](int n, Vec<P> v) {
    // Of panels narrower than a vector, each step writes over what the one before had too many.
    if constexpr (kCount == kLanes<P> || kWidth < kLanes<P>) {
      store(out + n * kWidth, v);
    } else {
      store_first(out + n * kWidth, v, kCount);
    }
  };
  if constexpr (kAlongDepth) {
    constexpr int kAhead = 128 / sizeof(T);  // more rows than the processor's own prefetch follows
    for (int i = 0; i < std::min(valid, kCount); ++i)
      __builtin_prefetch(x.data + (first + i) * x.stride + k + kAhead);
    Vec<P> rows[kLanes<P>];
    for (int i = 0; i < kLanes<P>; ++i)
      rows[i] =
          i < std::min(valid, kCount) ? x.template load_packed<P, true>(first + i, k, depth, 1) : Vec<P>{};
    transpose<P>(rows);
    for (int n = 0; n < steps; ++n) put(n, rows[n]);
  } else {
    const int count = std::clamp(valid, 0, kCount);
    const auto pack = [&](auto some) {
      for (int n = 0; n < steps; ++n) {
        const int ahead = n * kPerStep<P>;
        put(n, x.template load_packed<P, false>(first, k + ahead, depth - ahead, some));
      }
    };
    count == kCount ? pack(std::integral_constant<int, kCount>()) : pack(count);
  }
}

template <int kWidth, bool kAlongDepth, class T, class P>
GLM_INLINE void pack_steps(const Operand<T>& x, int64_t first, int valid, int64_t k, int depth, P* out) {
  constexpr int kGroups = (kWidth + kLanes<P> - 1) / kLanes<P>;
  [&]<int... kGroup>(std::integer_sequence<int, kGroup...>) {
    (pack_lanes<kWidth, kGroup * kLanes<P>, kAlongDepth>(x, first, valid, k, depth, out), ...);
  }(std::make_integer_sequence<int, kGroups>{});
}

// Panels [panel0, panel0 + panels) of the `size` elements from `first` on, k in [k0, k0 + depth). Panel p
// lies at out + p * kWidth * steps_of(depth); what a last panel has beyond `size`, and a last pair beyond
// `depth`, is zero. kStream: past the caches, for panels that are read only when all have been written.
template <int kWidth, bool kStream = false, class T, class P = Packed<T>>
[[gnu::noinline]] void pack_panels(const Operand<T>& x, int64_t first, int64_t size, int64_t panel0,
                                   int64_t panels, int64_t k0, int64_t depth, P* out) {
  constexpr int kGroup = kPerStep<P> * kLanes<P>;
  constexpr bool kCopied = kStream || kWidth < kLanes<P>;  // packed in L1 first
  alignas(64) P group[kLanes<P> * kWidth + kLanes<P>];
  const auto pack = [&]<bool kAlongDepth>(std::bool_constant<kAlongDepth>, int64_t panel, int64_t k) {
    const int64_t i = panel * kWidth;
    const int some = static_cast<int>(std::min<int64_t>(kGroup, depth - k));
    const int valid = static_cast<int>(std::min<int64_t>(kWidth, size - i));
    P* const there = out + i * steps_of<P>(depth) + k / kPerStep<P> * kWidth;
    P* const packed = kCopied ? group : there;
    pack_steps<kWidth, kAlongDepth>(x, first + i, valid, k0 + k, some, packed);
    if (x.function) x.function(packed, steps_of<P>(some) * kWidth);
    if constexpr (kCopied) {
      if (kStream && some == kGroup && reinterpret_cast<uintptr_t>(there) % kVectorBytes == 0) {
        for (int n = 0; n < kLanes<P> * kWidth; n += kLanes<P>) stream(there + n, load(group + n));
      } else {
        std::copy_n(group, steps_of<P>(some) * kWidth, there);
      }
    }
  };
  const int64_t end = std::min(panel0 + panels, (size + kWidth - 1) / kWidth);
  if (x.depth_stride == 1) {
    for (int64_t panel = panel0; panel < end; ++panel) {
      for (int64_t k = 0; k < depth; k += kGroup) pack(std::true_type{}, panel, k);
    }
  } else {  // a few k of all panels at a time: long runs of memory, few pages
    for (int64_t k = 0; k < depth; k += kGroup) {
      for (int64_t panel = panel0; panel < end; ++panel) pack(std::false_type{}, panel, k);
    }
  }
  if constexpr (kStream) stream_fence();
}

// Rows [0, rows) as they are read by dot products: contiguous along k, zeros after the last.
template <class T, class P = Packed<T>>
void pack_rows(const Operand<T>& x, int64_t rows, int64_t depth, P* out, int64_t out_stride) {
  constexpr int kGroup = kPerStep<P> * kLanes<P>;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < depth; k += kGroup)
      store(out + r * out_stride + k / kPerStep<P>,
            x.template load_packed<P, true>(r, k, static_cast<int>(std::min<int64_t>(kGroup, depth - k)), 1));
  }
  if (x.function) x.function(out, rows * out_stride);
}

}  // namespace glm::cpu::GLM_ISA
