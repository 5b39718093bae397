#include "core/dispatch.h"
#include "cpu/attention/tile.h"
#include "ops/span_attention.h"
#include "cpu/attention/storage.h"
#include "cpu/pack.h"

namespace glm::cpu::GLM_ISA {
namespace {

template <class T>
void read_row(const void* row, int64_t depth, int64_t padded, Compute<T>* out) {
  using C = Compute<T>;
  constexpr int64_t kStep = kLanes<C>;
  const T* in = static_cast<const T*>(row);
  const int64_t valid = in == nullptr ? 0 : depth;
  int64_t d = 0;
  for (; d + kStep <= valid; d += kStep) store(out + d, load_as(in + d));
  for (; d < padded; d += kStep) {
    const int count = static_cast<int>(std::max<int64_t>(valid - d, 0));
    store(out + d, count > 0 ? load_as_first(in + d, count) : Vec<C>{});
  }
}

template <class T>
void write_row(const Compute<T>* row, int64_t depth, Compute<T> factor, void* out) {
  constexpr int64_t kStep = kLanes<Compute<T>>;
  T* to = static_cast<T*>(out);
  for (int64_t d = 0; d < depth; d += kStep)
    store_as_some(to + d, load(row + d) * factor, static_cast<int>(std::min(kStep, depth - d)));
}

template <class T>
void read_panel(const void* rows, int64_t row_stride, int64_t first, int64_t last, int64_t depth,
                Compute<T> factor, Compute<T>* panel) {
  using C = Compute<T>;
  constexpr int kStep = kLanes<C>;
  const T* in = static_cast<const T*>(rows);
  for (int slot = 0; slot < kPanelRows<C>; slot += kStep) {
    for (int64_t d = 0; d < depth; d += kStep) {
      const int count = static_cast<int>(std::min<int64_t>(kStep, depth - d));
      Vec<C> block[kStep];
#pragma GCC unroll 16
      for (int i = 0; i < kStep; ++i) {
        const int64_t row = slot_row<C>(slot + i);
        const bool present = row >= first && row < last;
        block[i] = present ? load_as_some(in + row * row_stride + d, count) * factor : Vec<C>{};
      }
      transpose<C>(block);
#pragma GCC unroll 16
      for (int i = 0; i < kStep; ++i) store(panel + (d + i) * kPanelRows<C> + slot, block[i]);
    }
  }
}

template <class T>
void write_panel(const Compute<T>* panel, const Compute<T>* factor, int64_t rows, int64_t depth, void* out,
                 int64_t row_stride) {
  using C = Compute<T>;
  constexpr int kStep = kLanes<C>;
  T* to = static_cast<T*>(out);
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
        if (row < rows) store_as_some(to + row * row_stride + d, block[i], count);
      }
    }
  }
}

template <class T>
Compute<T> dot(const void* a, const void* b, int64_t depth) {
  constexpr int64_t kStep = kLanes<Compute<T>>;
  Vec<Compute<T>> sum = {};
  for (int64_t d = 0; d < depth; d += kStep) {
    const int count = static_cast<int>(std::min(kStep, depth - d));
    sum = fma(load_as_some(static_cast<const T*>(a) + d, count),
              load_as_some(static_cast<const T*>(b) + d, count), sum);
  }
  return reduce_add(sum);
}

template <class T>
constexpr Storage<Compute<T>> kStorage = {sizeof(T),     read_row<T>,    write_row<T>,
                                          read_panel<T>, write_panel<T>, dot<T>};

}  // namespace

const Storage<float>& storage(DType dtype, Type<float>) {
  return dtype == DType::bf16 ? kStorage<bf16> : dtype == DType::f16 ? kStorage<f16> : kStorage<float>;
}

const Storage<double>& storage(DType, Type<double>) { return kStorage<double>; }

}  // namespace glm::cpu::GLM_ISA
