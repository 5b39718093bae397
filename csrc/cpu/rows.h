// Walking along one row of a matrix [N, E], vector by vector: what the row-wise kernels share.
#pragma once

#include <algorithm>

#include "cpu/philox_simd.h"
#include "cpu/simd.h"

namespace glm::cpu::GLM_ISA {

// Calls body(e, count) for vectors of columns [begin, end); count < kLanes only for the last.
template <class C, class Body>
GLM_INLINE void for_columns(int64_t begin, int64_t end, const Body& body) {
  int64_t e = begin;
  for (; e + kLanes<C> <= end; e += kLanes<C>) body(e, kLanes<C>);
  if (e < end) body(e, static_cast<int>(end - e));
}

// The same with the dropout factors of row n: body(e, count, factor), where factor[0..count) belong to
// columns [e, e + count). Without kDropout factor is null.
template <class C, bool kDropout, class Body>
GLM_INLINE void for_columns_dropout(const RowDropout& dropout, int64_t n, int64_t width, const Body& body) {
  if constexpr (kDropout) {
    C factor[kDropoutChunk];
    for (int64_t chunk = 0; chunk < width; chunk += kDropoutChunk) {
      dropout.factors(n, chunk, factor);
      for_columns<C>(chunk, std::min(chunk + kDropoutChunk, width),
                     [&](int64_t e, int count) { body(e, count, factor + (e - chunk)); });
    }
  } else {
    for_columns<C>(0, width, [&](int64_t e, int count) { body(e, count, nullptr); });
  }
}

// x times its dropout factors. A dropped element is 0 whatever it held: 0 * NaN would not be.
template <bool kDropout, class V>
GLM_INLINE V dropout_row(V x, const LaneOf<V>* factor) {
  if constexpr (kDropout) {
    const V scale = load(factor);
    return scale != LaneOf<V>(0) ? x * scale : V{};
  } else {
    return x;
  }
}

// Lanes at and past `count` become zero: they must not enter a sum.
template <class C>
GLM_INLINE Vec<C> keep_first(Vec<C> v, int count) {
  if (count < kLanes<C>) {
    for (int i = count; i < kLanes<C>; ++i) v[i] = C(0);
  }
  return v;
}

}  // namespace glm::cpu::GLM_ISA
