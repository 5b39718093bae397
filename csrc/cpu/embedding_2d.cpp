// The sum of three table rows, and its gradient without atomics: the rows of a table's gradient are sums over
// the places that looked them up, found by a stable counting sort and added in order. GLM's ids are the worst
// case for atomics: block position 0 is every token of Part A, and all of a span shares one position.
#include "ops/embedding_2d.h"

#include <algorithm>
#include <cstring>

#include "core/dispatch.h"
#include "cpu/declarations.h"
#include "cpu/matrix.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace glm::cpu::GLM_ISA {
namespace {

constexpr int64_t kRowsPerTask = 16;
constexpr int64_t kRowsAhead = 16;  // of one id: 16 of 4096 floats are a quarter of L2
constexpr int64_t kZeroRowsPerTask = 256;
constexpr int64_t kLargeTableBytes = int64_t{1} << 24;
static_assert(embedding_keep_words(kDropoutChunk) == kDropoutChunk / 16 &&
              embedding_keep_words(kDropoutChunk + 1) == kDropoutChunk / 16 * 2);

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
  for_columns_dropout<C, kDropout>(dropout, n, p.width, [&](int64_t e, int count, auto dropped) {
    const Vec<C> sum =
        load_as_some(row[0] + e, count) + load_as_some(row[1] + e, count) + load_as_some(row[2] + e, count);
    store_as_some(out + e, dropped(sum), count);
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

// Vectors of a chunk. A whole one is unrolled, so that its sums stay in registers.
template <class C, bool kWhole, class Body>
GLM_INLINE void for_chunk(int64_t columns, const Body& body) {
  if constexpr (kWhole) {
#pragma GCC unroll 16
    for (int e = 0; e < kDropoutChunk; e += kLanes<C>) body(e, kLanes<C>);
  } else {
    for_columns<C>(0, columns, body);
  }
}

enum class Write { kOver, kOnto, kPastCaches };  // the last one as the first

// A large table's gradient goes past the caches: zeros take a third of the time then (AMD Zen 4), and sums do
// not wait for the lines that they replace.
Write way_to_write(const EmbeddingLookup& lookup, int64_t row_bytes) {
  if (lookup.add) return Write::kOnto;
  const auto begin = reinterpret_cast<uintptr_t>(lookup.table), bytes = static_cast<uintptr_t>(row_bytes);
  const bool aligned = (begin | bytes) % kVectorBytes == 0;
  return aligned && lookup.table_rows * row_bytes >= kLargeTableBytes ? Write::kPastCaches : Write::kOver;
}

// Sums rows of the gradient, dropped as the forward pass dropped theirs.
template <class T, bool kDropout>
struct RowSums {
  using C = Compute<T>;

  const Embedding2DBackward& p;
  const RowDropout& dropout;
  const bool draws;  // what is kept, into p.keep: the first table's sums, for the other tables

  // out = or += the sum of `count` rows, in order, from place `begin` of the sorted ones. Out is T or C.
  template <class Out>
  void sum(const Sorted& sorted, int64_t begin, int64_t count, Write write, Out* out) const {
    const int64_t keep_words = embedding_keep_words(p.width);
    const int64_t* order = sorted.order + begin;
    const int64_t ahead = std::min({count, kRowsAhead, p.rows - begin - 1});
    for (int64_t i = 1; i <= ahead; ++i) fetch(order[i]);
    for (int64_t i = 0; kDropout && draws && i < count; ++i)
      for (int64_t chunk = 0; chunk < p.width; chunk += kDropoutChunk)
        dropout.draw_bits(order[i], chunk, p.keep + order[i] * keep_words + chunk / 16);
    for_chunks(p.width, [&](int64_t chunk, int64_t columns, auto whole) {
      Vec<C> sums[kDropoutChunk / kLanes<C>] = {};
      alignas(kVectorBytes) Out totals[kDropoutChunk];
      for (int64_t i = 0; i < count; ++i) {
        const T* grad = static_cast<const T*>(p.grad) + order[i] * p.width + chunk;
        const uint16_t* keep = kDropout ? p.keep + order[i] * keep_words + chunk / 16 : nullptr;
        for_chunk<C, whole.value>(columns, [&](int64_t e, int lanes) {
          const Vec<C> x = load_as_some(grad + e, lanes);
          sums[e / kLanes<C>] += kDropout ? dropout.dropped_by_bits(x, keep, e) : x;
        });
      }
      for_chunk<C, whole.value>(columns, [&](int64_t e, int lanes) {
        const Vec<C> total = sums[e / kLanes<C>];
        Out* there = (write == Write::kPastCaches ? totals : out + chunk) + e;
        store_as_some(there, write == Write::kOnto ? load_as_some(there, lanes) + total : total, lanes);
      });
      if (write == Write::kPastCaches) stream_copy(out + chunk, totals, columns);
    });
  }

  // To L2, the row after too: ids lead to rows in no order that a processor foresees.
  void fetch(int64_t n) const {
    const T* grad = static_cast<const T*>(p.grad) + n * p.width;
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t e = 0; e < p.width; e += kLine) __builtin_prefetch(grad + e, 0, 2);
  }
};

// Zeros for the rows that nothing comes to, apart from the sums, whose reads would break the stream.
void zero_others(const EmbeddingLookup& lookup, const Sorted& sorted, int64_t row_bytes, Write write,
                 int threads) {
  parallel_for(ceil_div(lookup.table_rows, kZeroRowsPerTask), threads, [&](int64_t task) {
    const int64_t end = std::min((task + 1) * kZeroRowsPerTask, lookup.table_rows);
    for (int64_t v = task * kZeroRowsPerTask; v < end; ++v) {
      if (sorted.first[v] < sorted.first[v + 1]) continue;
      unsigned char* row = static_cast<unsigned char*>(lookup.table) + v * row_bytes;
      if (write == Write::kPastCaches) {
        for (int64_t b = 0; b < row_bytes; b += kVectorBytes)
          stream(reinterpret_cast<float*>(row + b), VecF{});
      } else {
        std::memset(row, 0, static_cast<size_t>(row_bytes));
      }
    }
    if (write == Write::kPastCaches) stream_fence();
  });
}

// Writes every row of the gradient of one table, or adds to it.
template <class T, bool kDropout>
void backward_table(const RowSums<T, kDropout>& rows, const EmbeddingLookup& lookup, const Sorted& sorted) {
  using C = Compute<T>;
  const Embedding2DBackward& p = rows.p;
  const int64_t width = p.width;
  C* pieces = static_cast<C*>(p.pieces);
  parallel_for(p.rows / kEmbeddingPieceRows, p.threads, [&](int64_t slot) {
    const Sorted::Piece piece = sorted.piece(lookup, slot);
    if (piece.begin < piece.end)
      rows.sum(sorted, piece.begin, piece.end - piece.begin, Write::kOver, pieces + slot * width);
  });

  const int64_t row_bytes = width * static_cast<int64_t>(sizeof(T));
  const Write write = way_to_write(lookup, row_bytes);
  if (!lookup.add) zero_others(lookup, sorted, row_bytes, write, p.threads);
  parallel_for(ceil_div(lookup.table_rows, kRowsPerTask), p.threads, [&](int64_t task) {
    const int64_t end = std::min((task + 1) * kRowsPerTask, lookup.table_rows);
    for (int64_t v = task * kRowsPerTask; v < end; ++v) {
      const int64_t begin = sorted.first[v], count = sorted.first[v + 1] - begin;
      T* out = static_cast<T*>(lookup.table) + v * width;
      if (Sorted::pieces(count) > 0) {
        add_groups(pieces + begin / kEmbeddingPieceRows * width, Sorted::pieces(count), width, lookup.add,
                   out);
      } else if (count > 0) {
        rows.sum(sorted, begin, count, write, out);
      }
    }
    if (write == Write::kPastCaches) stream_fence();
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
      bool draws = true;
      for (int which = 0; which < 3; ++which) {
        if (!p.lookups[which].table) continue;
        backward_table<T, has_dropout.value>({p, dropout, draws}, p.lookups[which], sorted[which]);
        draws = false;
      }
    });
  });
  return fault;
}

}  // namespace glm::cpu::GLM_ISA
