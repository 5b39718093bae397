// The sum of three table rows, and its gradient without atomics: the rows of a table's gradient are sums over
// the places that looked them up, found by a stable counting sort and added in order. GLM's ids are the worst
// case for atomics: block position 0 is every token of Part A, and all of a span shares one position.
#include "ops/embedding_2d.h"

#include <algorithm>

#include "core/dispatch.h"
#include "cpu/declarations.h"
#include "cpu/matrix.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace glm::cpu::GLM_ISA {
namespace {

constexpr int64_t kRowsPerTask = 16;

EmbeddingFault find_fault(const EmbeddingLookup (&lookups)[3], int64_t rows) {
  for (int which = 0; which < 3; ++which) {
    const int64_t* ids = lookups[which].ids;
    const uint64_t table_rows = static_cast<uint64_t>(lookups[which].table_rows);
    for (int64_t n = 0; n < rows; ++n) {
      if (static_cast<uint64_t>(ids[n]) >= table_rows) return {which, n};
    }
  }
  return {};
}

template <class T, bool kDropout>
void forward_row(const Embedding2DForward& p, const RowDropout& dropout, int64_t n) {
  using C = Compute<T>;
  const T* row[3];
  for (int which = 0; which < 3; ++which) {
    const EmbeddingLookup& lookup = p.lookups[which];
    row[which] = static_cast<const T*>(lookup.table) + lookup.ids[n] * p.width;
  }
  T* out = static_cast<T*>(p.out) + n * p.width;
  for_columns_dropout<C, kDropout>(dropout, n, p.width, [&](int64_t e, int count, const C* factor) {
    const Vec<C> sum =
        load_as_some(row[0] + e, count) + load_as_some(row[1] + e, count) + load_as_some(row[2] + e, count);
    store_as_some(out + e, dropout_row<kDropout>(sum, factor), count);
  });
}

// ------------------------------------------------------------------------------------------------ backward

// The places of a batch in the order of their ids; places of one id stay in order.
struct Sorted {
  int64_t* order;  // [N]
  int64_t* first;  // [table_rows + 2]: id v has places order[first[v]] to order[first[v + 1] - 1]

  void sort(const EmbeddingLookup& lookup, int64_t rows) const {
    std::fill(first, first + lookup.table_rows + 2, int64_t{0});
    for (int64_t n = 0; n < rows; ++n) ++first[lookup.ids[n] + 2];
    for (int64_t v = 1; v <= lookup.table_rows; ++v) first[v + 1] += first[v];
    // first[v + 1] is where id v begins, and has moved to where it ends when all its places are out.
    for (int64_t n = 0; n < rows; ++n) order[first[lookup.ids[n] + 1]++] = n;
  }

  // An id of 2 kEmbeddingPieceRows places or more is cut into pieces of kEmbeddingPieceRows, the last one up
  // to twice as long: 0 pieces for any other.
  static int64_t pieces(int64_t count) {
    return count < 2 * kEmbeddingPieceRows ? 0 : count / kEmbeddingPieceRows;
  }

  struct Piece {
    int64_t begin, end;  // in order
  };

  // The piece that begins in [slot, slot + 1) * kEmbeddingPieceRows, if any. No piece is shorter than a slot,
  // so none has two; and the last place of the slot belongs to the piece's id.
  Piece piece(const EmbeddingLookup& lookup, int64_t slot) const {
    const int64_t last = (slot + 1) * kEmbeddingPieceRows - 1;
    const int64_t id = lookup.ids[order[last]];
    const int64_t begin = first[id], end = first[id + 1], count = pieces(end - begin);
    if (count == 0) return {0, 0};
    const int64_t index = std::min((last - begin) / kEmbeddingPieceRows, count - 1);
    const int64_t piece_begin = begin + index * kEmbeddingPieceRows;
    if (piece_begin / kEmbeddingPieceRows != slot) return {0, 0};
    return {piece_begin, index == count - 1 ? end : piece_begin + kEmbeddingPieceRows};
  }
};

// out = or += sum over i < count, in order, of dropout'(grad[order[i]]). Out is T or Compute<T>.
template <class T, bool kDropout, class Out>
void sum_rows(const Embedding2DBackward& p, const RowDropout& dropout, const int64_t* order, int64_t count,
              bool add, Out* out) {
  using C = Compute<T>;
  for (int64_t chunk = 0; chunk < p.width; chunk += kDropoutChunk) {
    const int64_t end = std::min(chunk + kDropoutChunk, p.width);
    C sum[kDropoutChunk] = {}, factor[kDropoutChunk];
    for (int64_t i = 0; i < count; ++i) {
      const T* grad = static_cast<const T*>(p.grad) + order[i] * p.width;
      if constexpr (kDropout) dropout.factors(order[i], chunk, factor);
      for_columns<C>(chunk, end, [&](int64_t e, int lanes) {
        C* sum_e = sum + (e - chunk);
        store(sum_e,
              load(sum_e) + dropout_row<kDropout>(load_as_some(grad + e, lanes), factor + (e - chunk)));
      });
    }
    for_columns<C>(chunk, end, [&](int64_t e, int lanes) {
      const Vec<C> total = load(sum + (e - chunk));
      store_as_some(out + e, add ? load_as_some(out + e, lanes) + total : total, lanes);
    });
  }
}

template <class T, bool kDropout>
void backward_table(const Embedding2DBackward& p, const RowDropout& dropout, const EmbeddingLookup& lookup,
                    const Sorted& sorted) {
  using C = Compute<T>;
  const int64_t width = p.width;
  C* pieces = static_cast<C*>(p.pieces);
  parallel_for(p.rows / kEmbeddingPieceRows, p.threads, [&](int64_t slot) {
    const Sorted::Piece piece = sorted.piece(lookup, slot);
    if (piece.begin < piece.end)
      sum_rows<T, kDropout>(p, dropout, sorted.order + piece.begin, piece.end - piece.begin, false,
                            pieces + slot * width);
  });

  parallel_for(ceil_div(lookup.table_rows, kRowsPerTask), p.threads, [&](int64_t task) {
    const int64_t end = std::min((task + 1) * kRowsPerTask, lookup.table_rows);
    for (int64_t v = task * kRowsPerTask; v < end; ++v) {
      const int64_t begin = sorted.first[v], count = sorted.first[v + 1] - begin;
      T* out = static_cast<T*>(lookup.table) + v * width;
      if (Sorted::pieces(count) > 0) {
        add_groups(pieces + begin / kEmbeddingPieceRows * width, Sorted::pieces(count), width, lookup.add,
                   out);
      } else if (count > 0) {  // else nothing comes to it
        sum_rows<T, kDropout>(p, dropout, sorted.order + begin, count, lookup.add, out);
      }
    }
  });
}

}  // namespace

EmbeddingFault embedding_2d_forward(const Embedding2DForward& p) {
  const EmbeddingFault fault = find_fault(p.lookups, p.rows);
  if (fault.which >= 0) return fault;
  const RowDropout dropout(p.dropout);
  visit_floating(p.dtype, [&]<class T>(Type<T>) {
    visit_bool(p.dropout.active(), [&](auto has_dropout) {
      parallel_for(ceil_div(p.rows, kRowsPerTask), p.threads, [&](int64_t task) {
        const int64_t end = std::min((task + 1) * kRowsPerTask, p.rows);
        for (int64_t n = task * kRowsPerTask; n < end; ++n) forward_row<T, has_dropout.value>(p, dropout, n);
      });
    });
  });
  return fault;
}

EmbeddingFault embedding_2d_backward(const Embedding2DBackward& p) {
  const EmbeddingFault fault = find_fault(p.lookups, p.rows);
  if (fault.which >= 0) return fault;
  Sorted sorted[3];
  int64_t* first = p.first;
  for (int which = 0; which < 3; ++which) {
    sorted[which] = {p.order + which * p.rows, first};
    first += p.lookups[which].table_rows + 2;
  }
  parallel_for(3, p.threads, [&](int64_t which) {
    if (p.lookups[which].table) sorted[which].sort(p.lookups[which], p.rows);
  });

  const RowDropout dropout(p.dropout);
  visit_floating(p.dtype, [&]<class T>(Type<T>) {
    visit_bool(p.dropout.active(), [&](auto has_dropout) {
      for (int which = 0; which < 3; ++which) {
        if (p.lookups[which].table)
          backward_table<T, has_dropout.value>(p, dropout, p.lookups[which], sorted[which]);
      }
    });
  });
  return fault;
}

}  // namespace glm::cpu::GLM_ISA
