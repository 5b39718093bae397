#include "cpu/attention/storage.h"

#include "cpu/attention/tile.h"
#include "cpu/pack.h"

namespace glm::cpu::GLM_ISA {
namespace {

constexpr int64_t kAhead = 8;  // rows lie far apart: fetch them before they are asked for

template <class T>
struct Rows {
  T* data;
  int64_t stride, first, last;

  explicit Rows(const RowRange& range)
      : data(static_cast<T*>(const_cast<void*>(range.data))),
        stride(range.stride),
        first(range.first),
        last(range.last) {}

  bool present(int64_t row) const { return row >= first && row < last; }
  T* at(int64_t row) const { return data + row * stride; }
  void prefetch(int64_t row, int64_t depth) const {
    if (!present(row)) return;
    const char* bytes = reinterpret_cast<const char*>(at(row));
    for (int64_t line = 0; line < depth * static_cast<int64_t>(sizeof(T)); line += 64)
      __builtin_prefetch(bytes + line);
  }
};

template <class T, class P>
void read_rows(const RowRange& range, int64_t count, int64_t depth, P* out) {
  constexpr int64_t kElements = kLanes<P> * kPerStep<P>;  // of a vector
  const int64_t steps = row_steps<P>(depth);
  const Rows<const T> rows(range);
  for (int64_t row = 0; row < count; ++row, out += steps) {
    rows.prefetch(row + kAhead, depth);
    const int64_t valid = rows.present(row) ? depth : 0;
    const T* in = rows.at(row);
    int64_t n = 0, d = 0;
    for (; d + kElements <= valid; n += kLanes<P>, d += kElements)
      store(out + n, load_steps<P>(in + d, static_cast<int>(kElements)));
    for (; n < steps; n += kLanes<P>, d += kElements)
      store(out + n, valid > d ? load_steps<P>(in + d, static_cast<int>(valid - d)) : Vec<P>{});
  }
}

// out[steps of kCount][width]: kCount vectors from element d of as many rows.
template <int kCount, class P>
GLM_INLINE void store_columns(const Vec<P> (&block)[kCount], int64_t d, int64_t width, P* out) {
#pragma GCC unroll 16
  for (int i = 0; i < kCount; i += kPerStep<P>) {
    P* const row = out + steps_of<P>(i) * width + d;
    if constexpr (kIsPair<P>) {
      store(row, pair_rows<false>(block[i], block[i + 1]));
      if (d + kLanes<P> < width) store(row + kLanes<P>, pair_rows<true>(block[i], block[i + 1]));
    } else {
      store(row, block[i]);
    }
  }
}

template <class T, class P>
void read_columns(const RowRange& range, int64_t count, int64_t depth, P* out) {
  if constexpr (!kIsPair<P>) return read_rows<T, P>(range, count, depth, out);
  constexpr int kEach = kPerStep<P>;
  constexpr int64_t kElements = kLanes<P> * kEach;
  const int64_t width = padded(depth);
  const Rows<const T> rows(range);
  for (int64_t row = 0; row < count; row += kEach, out += width) {
    for (int i = 0; i < kEach; ++i) rows.prefetch(row + kAhead + i, depth);
    for (int64_t d = 0; d < width; d += kElements) {
      const int some = static_cast<int>(std::min(kElements, depth - d));
      Vec<P> block[kEach];
      for (int i = 0; i < kEach; ++i)
        block[i] = rows.present(row + i) ? load_steps<P>(rows.at(row + i) + d, some) : Vec<P>{};
      store_columns<kEach, P>(block, d, width, out);
    }
  }
}

template <class T>
void write_rows(const Compute<T>* in, int64_t depth, Compute<T> factor, const RowRange& range) {
  constexpr int64_t kStep = kLanes<Compute<T>>;
  const int64_t width = padded(depth);
  const Rows<T> rows(range);
  for (int64_t row = rows.first; row < rows.last; ++row) {
    for (int64_t d = 0; d < depth; d += kStep)
      store_as_some(rows.at(row) + d, load(in + row * width + d) * factor,
                    static_cast<int>(std::min(kStep, depth - d)));
  }
}

// Blocks of kLanes queries by kLanes steps, turned over in registers.
template <class T, class P>
void read_panel(const RowRange& range, int64_t depth, SumOf<P> factor, P* panel, P* copy) {
  using C = SumOf<P>;
  constexpr int kStep = kLanes<P>, kElements = kStep * kPerStep<P>;
  const int64_t width = padded(depth), steps = row_steps<P>(depth);
  const Rows<const T> rows(range);
  for (int slot = 0; slot < kPanelRows<C>; slot += kStep) {
    for (int i = 0; i < kStep; ++i) rows.prefetch(slot_row<C>((slot + kStep + i) % kPanelRows<C>), depth);
    for (int64_t n = 0; n < steps; n += kStep) {
      const int64_t d = n * kPerStep<P>;
      const int count = static_cast<int>(std::clamp<int64_t>(depth - d, 0, kElements));
      Vec<P> block[kStep];
#pragma GCC unroll 16
      for (int i = 0; i < kStep; ++i) {
        const int64_t row = slot_row<C>(slot + i);
        block[i] = rows.present(row) ? load_steps<P>(rows.at(row) + d, count) : Vec<P>{};
      }
      if (copy != nullptr && d < width)
        store_columns<kStep, P>(block, d, width, copy + steps_of<P>(slot) * width);
      if constexpr (!kIsPair<P>) {
#pragma GCC unroll 16
        for (int i = 0; i < kStep; ++i) block[i] *= factor;
      }
      transpose<P>(block);
#pragma GCC unroll 16
      for (int i = 0; i < kStep; ++i) store(panel + (n + i) * kPanelRows<C> + slot, block[i]);
    }
  }
}

template <class T>
void write_panel(const Compute<T>* panel, int64_t depth, const Compute<T>* factor, const RowRange& range) {
  using C = Compute<T>;
  constexpr int kStep = kLanes<C>;
  const Rows<T> rows(range);
  for (int slot = 0; slot < kPanelRows<C>; slot += kStep) {
    const Vec<C> scale = load(factor + slot);
    for (int64_t d = 0; d < depth; d += kStep) {
      const int count = static_cast<int>(std::min<int64_t>(kStep, depth - d));
      Vec<C> block[kStep];
#pragma GCC unroll 16
      for (int i = 0; i < kStep; ++i) block[i] = load(panel + (d + i) * kPanelRows<C> + slot) * scale;
      transpose<C>(block);
#pragma GCC unroll 16
      for (int i = 0; i < kStep; ++i) {
        const int64_t row = slot_row<C>(slot + i);
        if (rows.present(row)) store_as_some(rows.at(row) + d, block[i], count);
      }
    }
  }
}

template <class T, class P = Packed<T>>
constexpr Storage<P> kStorage = {sizeof(T),        read_rows<T, P>, read_columns<T, P>,
                                 read_panel<T, P>, write_rows<T>,   write_panel<T>};

}  // namespace

#if defined(__AVX512BF16__)
const Storage<Pair>& storage(DType, Type<Pair>) { return kStorage<bf16>; }
#else
const Storage<float>& storage(DType dtype, Type<float>) {
  return dtype == DType::bf16 ? kStorage<bf16> : dtype == DType::f16 ? kStorage<f16> : kStorage<float>;
}

const Storage<double>& storage(DType, Type<double>) { return kStorage<double>; }
#endif

}  // namespace glm::cpu::GLM_ISA
