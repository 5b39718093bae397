// Rows that the next tile reads, fetched into L2 a few at a time while this one is computed: rows of a head
// lie far apart in memory, where no hardware looks ahead.
#pragma once

#include <algorithm>

#include "cpu/attention/storage.h"
#include "cpu/parallel.h"

namespace glm::cpu::GLM_ISA {

class RowsAhead {
 public:
  explicit RowsAhead(int64_t row_bytes) : row_bytes_(row_bytes) {}

  // Forgets what is left, and takes ranges anew.
  void clear() { count_ = current_ = 0, row_ = total_ = 0; }

  // The rows of `range` that exist; `element` bytes each element.
  void add(const RowRange& range, size_t element) {
    const int64_t first = std::max<int64_t>(range.first, 0),
                  stride = range.stride * static_cast<int64_t>(element);
    if (range.last <= first || count_ == kMost) return;
    ranges_[count_++] = {static_cast<const char*>(range.data) + first * stride, stride, range.last - first};
    total_ += range.last - first;
  }

  // The rows are fetched by `steps` calls of fetch().
  void spread(int64_t steps) { each_ = ceil_div(total_, std::max<int64_t>(steps, 1)); }

  void fetch() {
    for (int64_t n = 0; n < each_ && current_ < count_; ++n) {
      const Range& range = ranges_[current_];
      const char* row = range.data + row_ * range.stride;
      for (int64_t line = 0; line < row_bytes_; line += 64) __builtin_prefetch(row + line, 0, 2);
      if (++row_ == range.rows) ++current_, row_ = 0;
    }
  }

 private:
  static constexpr int kMost = 5;  // queries, grad_out, out, keys, values
  struct Range {
    const char* data;
    int64_t stride, rows;
  };

  int64_t row_bytes_;
  Range ranges_[kMost];
  int count_ = 0, current_ = 0;
  int64_t row_ = 0, total_ = 0, each_ = 0;
};

}  // namespace glm::cpu::GLM_ISA
