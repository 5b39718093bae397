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

// Calls body(chunk, columns, whole) for the chunks of a row, the first column of each and their number; whole,
// known when compiled, for all but a shorter last one.
template <class Body>
GLM_INLINE void for_chunks(int64_t width, const Body& body) {
  int64_t chunk = 0;
  for (; chunk + kDropoutChunk <= width; chunk += kDropoutChunk) body(chunk, kDropoutChunk, std::true_type{});
  if (chunk < width) body(chunk, width - chunk, std::false_type{});
}

// The columns of row n with dropout, in an order of its own: body(e, count, dropped), where dropped(x) is what
// remains of a vector x of columns [e, e + count).
template <class C, bool kDropout, class Body>
GLM_INLINE void for_columns_dropout(const RowDropout& dropout, int64_t n, int64_t width, const Body& body) {
  if constexpr (kDropout) {
    for_chunks(width, [&](int64_t chunk, int64_t columns, auto whole) {
      for (int lane = 0; lane < 16; lane += kLanes<uint32_t>) {
        const PhiloxVectors numbers = dropout.numbers(n, chunk, lane);
#pragma GCC unroll 8
        for (int t = 0; t < RowDropout::kNumbers; ++t) {
          const LaneMask keep = dropout.keep(numbers, t);
          for (int first = 0; first < kLanes<uint32_t>; first += kLanes<C>) {  // a double has two lanes
            const int64_t e = 16 * t + lane + first;
            if (!whole && e >= columns) break;
            const int count = whole ? kLanes<C> : static_cast<int>(std::min<int64_t>(kLanes<C>, columns - e));
            body(chunk + e, count, [&](Vec<C> x) { return dropout.dropped(x, keep, first); });
          }
        }
      }
    });
  } else {
    for_columns<C>(0, width, [&](int64_t e, int count) { body(e, count, [](Vec<C> x) { return x; }); });
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
