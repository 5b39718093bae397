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

template <class T>
void read_rows(const RowRange& range, int64_t count, int64_t depth, int64_t padded, Compute<T>* out) {
  using C = Compute<T>;
  constexpr int64_t kStep = kLanes<C>;
  const Rows<const T> rows(range);
  for (int64_t row = 0; row < count; ++row, out += padded) {
    rows.prefetch(row + kAhead, depth);
    const int64_t valid = rows.present(row) ? depth : 0;
    const T* in = rows.at(row);
    int64_t d = 0;
    for (; d + kStep <= valid; d += kStep) store(out + d, load_as(in + d));
    for (; d < padded; d += kStep)
      store(out + d, valid > d ? load_as_first(in + d, static_cast<int>(valid - d)) : Vec<C>{});
  }
}

template <class T>
void write_rows(const Compute<T>* in, int64_t padded, int64_t depth, Compute<T> factor,
                const RowRange& range) {
  constexpr int64_t kStep = kLanes<Compute<T>>;
  const Rows<T> rows(range);
  for (int64_t row = rows.first; row < rows.last; ++row) {
    for (int64_t d = 0; d < depth; d += kStep)
      store_as_some(rows.at(row) + d, load(in + row * padded + d) * factor,
                    static_cast<int>(std::min(kStep, depth - d)));
  }
}

// Blocks of kLanes queries by kLanes elements, turned over in registers.
template <class T>
void read_panel(const RowRange& range, int64_t depth, int64_t padded, Compute<T> factor, Compute<T>* panel,
                Compute<T>* copy) {
  using C = Compute<T>;
  constexpr int kStep = kLanes<C>;
  const Rows<const T> rows(range);
  for (int slot = 0; slot < kPanelRows<C>; slot += kStep) {
    for (int i = 0; i < kStep; ++i) rows.prefetch(slot_row<C>((slot + kStep + i) % kPanelRows<C>), depth);
    for (int64_t d = 0; d < padded; d += kStep) {
      const int count = static_cast<int>(std::clamp<int64_t>(depth - d, 0, kStep));
      Vec<C> block[kStep];
#pragma GCC unroll 16
      for (int i = 0; i < kStep; ++i) {
        const int64_t row = slot_row<C>(slot + i);
        block[i] = rows.present(row) ? load_as_some(rows.at(row) + d, count) : Vec<C>{};
        if (copy != nullptr) store(copy + (slot + i) * padded + d, block[i]);
        block[i] *= factor;
      }
      transpose<C>(block);
#pragma GCC unroll 16
      for (int i = 0; i < kStep; ++i) store(panel + (d + i) * kPanelRows<C> + slot, block[i]);
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

template <class T>
constexpr Storage<Compute<T>> kStorage = {sizeof(T), read_rows<T>, read_panel<T>, write_rows<T>,
                                          write_panel<T>};

}  // namespace

const Storage<float>& storage(DType dtype, Type<float>) {
  return dtype == DType::bf16 ? kStorage<bf16> : dtype == DType::f16 ? kStorage<f16> : kStorage<float>;
}

const Storage<double>& storage(DType, Type<double>) { return kStorage<double>; }

}  // namespace glm::cpu::GLM_ISA
