// Matrices of the contracts (ops/matrix.h) as operands of gemm.h, and their sums over rows.
#pragma once

#include <algorithm>

#include "cpu/pack.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "ops/matrix.h"

namespace glm::cpu::GLM_ISA {

template <class T>
Operand<T> by_rows(const Matrix& m) {  // element (i, k) in row i
  return {static_cast<const T*>(m.data), m.row_stride, m.col_stride};
}

template <class T>
Operand<T> by_cols(const Matrix& m) {  // element (i, k) in row k
  return {static_cast<const T*>(m.data), m.col_stride, m.row_stride};
}

// out[c] = or += sum over the groups, in order, of sums[group][c].
template <class T>
void add_groups(const Compute<T>* sums, int64_t groups, int64_t cols, bool add, T* out) {
  using C = Compute<T>;
  for_columns<C>(0, cols, [&](int64_t c, int count) {
    Vec<C> total = {};
    for (int64_t group = 0; group < groups; ++group) total += load_as_some(sums + group * cols + c, count);
    store_as_some(out + c, add ? load_as_some(out + c, count) + total : total, count);
  });
}

// out[c] = sum_n m[n][c]; sums[sum_groups(rows)][cols] is scratch.
template <class T>
void sum_rows(const Operand<T>& m, int64_t rows, int64_t cols, Compute<T>* sums, T* out, int threads) {
  using C = Compute<T>;
  const int64_t groups = sum_groups(rows);
  parallel_for(groups, threads, [&](int64_t group) {
    C* sum = sums + group * cols;
    const int64_t begin = group * kSumRows, end = std::min(begin + kSumRows, rows);
    std::fill(sum, sum + cols, C(0));
    for (int64_t n = begin; n < end; ++n) {
      for_columns<C>(0, cols, [&](int64_t c, int count) {
        store_as_some(sum + c, load_as_some(sum + c, count) + m.template load<true>(n, c, count), count);
      });
    }
  });
  add_groups<T>(sums, groups, cols, false, out);
}

}  // namespace glm::cpu::GLM_ISA
