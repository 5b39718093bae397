// Attention forward for the few rows of a decoding step: the cache is read once, where it lies, at the speed
// of memory. D is in the lanes. A work item is kDecodeKeys keys of a key head, for all rows that read it:
// kBlock keys at a time meet the heads of the group, up to kMaxRows together, while the next block is
// fetched. The items' partial softmaxes are joined in order.
#include "cpu/attention/decode.h"

#include <utility>

#include "cpu/attention/layout.h"
#include "cpu/attention/storage.h"
#include "cpu/attention/tile.h"
#include "cpu/pack.h"
#include "cpu/workspace.h"

namespace glm::cpu::GLM_ISA {
namespace {

// One row's softmax over the keys seen so far, as decode_partial lays it out.
template <class C>
struct Partial {
  C* sum;      // [padded depth] of probability * value
  C* maximum;  // of the scores, in units of log 2
  C* total;    // of the probabilities

  Partial(C* data, int64_t stride) : sum(data), maximum(data + stride), total(data + stride + 1) {}

  void clear(int64_t stride) {
    std::fill(sum, sum + stride, C(0));
    *maximum = -static_cast<C>(INFINITY);
    *total = C(0);
  }
  // Scales what is there to a new maximum (finite) and says by how much others are to be.
  C rescale(C highest, int64_t stride) {
    const C factor = std::exp2(*maximum - highest);
    for (int64_t d = 0; d < stride; d += kLanes<C>) store(sum + d, load(sum + d) * factor);
    *total *= factor;
    return *maximum = highest;
  }
};

constexpr int kBlock = 64;  // keys scored before their values are read: long runs of memory
template <class C>
inline constexpr int kMaxRows = std::min(4, kLanes<C>);

// The next block's rows, of which each group of query rows fetches a share: rows first, first + step, ...
template <class T>
struct Ahead {
  const T* data;
  int64_t stride, depth;
  int first, step, count;

  GLM_INLINE void fetch_upto(int row) {
    for (; first < std::min(row, count); first += step) {
      const char* bytes = reinterpret_cast<const char*>(data + first * stride);
      for (int64_t line = 0; line < depth * static_cast<int64_t>(sizeof(T)); line += 64)
        __builtin_prefetch(bytes + line, 0, 2);
    }
  }
};

// scores[row][key] = query[row] . key, of [0, count) keys; what follows them, up to kBlock, is undefined.
template <class T, int kRows, class C = Compute<T>>
[[gnu::noinline]] void score_keys(const T* key, int64_t key_stride, int count, int64_t depth,
                                  const C* queries, int64_t stride, C (&scores)[kRows][kBlock],
                                  Ahead<T> ahead) {
  // A vector of sums is kRows x kKeys products, kSide x kRows of them at a time in registers.
  constexpr int kStep = kLanes<C>, kKeys = kStep / kRows, kSide = std::min(kRows, kKeys);
  const int64_t whole = depth / kStep * kStep;
  for (int first = 0; first < count; first += kKeys) {
    Vec<C> products[kStep];
#pragma GCC unroll 16
    for (int j = 0; j < kKeys; j += kSide) {
      ahead.fetch_upto(first + j + kSide);
      Vec<C> sum[kRows][kSide] = {};
      const auto add = [&](int64_t d, const auto& load_key) GLM_INLINE_BODY {
        Vec<C> keys[kSide];
#pragma GCC unroll 4
        for (int side = 0; side < kSide; ++side)  // past the end: the last key again
          keys[side] = load_key(key + std::min(first + j + side, count - 1) * key_stride + d);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
          for (int side = 0; side < kSide; ++side)
            sum[r][side] = fma(keys[side], load(queries + r * stride + d), sum[r][side]);
        }
      };
      for (int64_t d = 0; d < whole; d += kStep)
        add(d, [](const T* p) GLM_INLINE_BODY { return load_as(p); });
      if (whole < depth)
        add(whole,
            [&](const T* p) GLM_INLINE_BODY { return load_as_first(p, static_cast<int>(depth - whole)); });
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int side = 0; side < kSide; ++side) products[r * kKeys + j + side] = sum[r][side];
      }
    }
    C sums[kStep];
    store(sums, reduce_each<C>(products));
    for (int r = 0; r < kRows; ++r) std::memcpy(&scores[r][first], sums + r * kKeys, kKeys * sizeof(C));
  }
}

// sum[row][d] += sum_key probs[row][key] * value[key][d], kVectors vectors of d at a time and fewer at last.
template <class T, int kRows, int kVectors = 8 / kRows, class C = Compute<T>>
void add_values(const T* value, int64_t value_stride, int count, int64_t depth,
                const C (&probs)[kRows][kBlock], C* sums, int64_t sum_stride, Ahead<T> ahead) {
  constexpr int kStep = kLanes<C>;
  int64_t d = 0;
  for (; d + (kVectors - 1) * kStep < depth; d += kVectors * kStep) {
    const int last = static_cast<int>(std::min<int64_t>(kStep, depth - d - (kVectors - 1) * kStep));
    Vec<C> sum[kRows][kVectors];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[r][v] = load(sums + r * sum_stride + d + v * kStep);
    }
    for (int j = 0; j < count; ++j) {
      ahead.fetch_upto(j + 1);
      const T* row = value + j * value_stride + d;
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const Vec<C> element = load_as_some(row + v * kStep, v + 1 < kVectors ? kStep : last);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sum[r][v] = fma(element, broadcast(probs[r][j]), sum[r][v]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) store(sums + r * sum_stride + d + v * kStep, sum[r][v]);
    }
  }
  if constexpr (kVectors > 1) {
    if (d < depth)
      add_values<T, kRows, kVectors / 2>(value + d, value_stride, count, depth - d, probs, sums + d,
                                         sum_stride, ahead);
  }
}

// scores[0, count) of a row become probabilities, relative to the maximum so far.
template <class C>
void exponentials(C* scores, int count, int64_t stride, Partial<C> partial) {
  constexpr int kStep = kLanes<C>;
  std::fill(scores + count, scores + kBlock, -static_cast<C>(INFINITY));
  Vec<C> highest = load(scores);
  for (int j = kStep; j < kBlock; j += kStep) highest = max(highest, load(scores + j));
  const C top = reduce_max(highest);  // NaN where a score is
  if (top > *partial.maximum) partial.rescale(top, stride);
  const C origin = *partial.maximum == -static_cast<C>(INFINITY) ? C(0) : *partial.maximum;
  Vec<C> total = {};
  for (int j = 0; j < kBlock; j += kStep) {
    const Vec<C> probs = exp2_below_128(load(scores + j) - origin);
    total += probs;
    store(scores + j, probs);
  }
  *partial.total += reduce_add(total);
}

// Keys [begin, end) of a key head, for the rows that read it: partials [S][G].
template <class T>
struct DecodeItem {
  using C = Compute<T>;
  const SpanAttention& p;
  int64_t b, kv_head;
  int64_t group, stride, partial_size;
  SpanSequence sequence;
  int64_t end;            // no row sees keys from here on
  C *queries, *partials;  // [S][G][stride], [S][G][partial_size]

  DecodeItem(const SpanAttention& p, int64_t b, int64_t kv_head, int64_t end, C* partials)
      : p(p),
        b(b),
        kv_head(kv_head),
        group(p.group()),
        stride(padded_depth(p)),
        partial_size(decode_partial(p)),
        sequence(p.sequence(b)),
        end(std::min(end, sequence.mask.seen_end(p.rows))),
        queries(workspace<C>(Slot::op, static_cast<size_t>(p.rows * p.group() * padded_depth(p)))),
        partials(partials) {}

  void run(int64_t begin) {
    const Storage<C>& io = storage(p.dtype, Type<C>{});
    for (int64_t row = 0; row < p.rows * group; ++row) {
      C* const query = queries + row * stride;
      io.read_rows(io.range(p.query, b, kv_head * group + row % group, row / group, 0, 1), 1, p.head_dim,
                   query);
      for (int64_t d = 0; d < stride; ++d) query[d] *= static_cast<C>(p.scale * kLog2E);
      Partial<C>(partials + row * partial_size, stride).clear(stride);
    }
    for (int64_t j = std::max(begin, sequence.mask.begin); j < end; j += kBlock) {
      for (int64_t i = 0; i < p.rows; ++i) {
        int64_t g = 0;
        for (; g + kMaxRows<C> <= group; g += kMaxRows<C>) add_keys<kMaxRows<C>>(j, i, g);
        if constexpr (kMaxRows<C> > 2) {
          for (; g + 2 <= group; g += 2) add_keys<2>(j, i, g);
        }
        for (; g < group; ++g) add_keys<1>(j, i, g);
      }
    }
  }

  // Up to kBlock keys from j, for row i of heads [g, g + kRows) of the group.
  template <int kRows>
  void add_keys(int64_t j, int64_t i, int64_t g) {
    const int64_t row = i * group + g, rows = p.rows * group;
    const int count =
        static_cast<int>(std::min<int64_t>(std::min(end, sequence.mask.row_end(i)) - j, kBlock));
    if (count <= 0) return;
    const auto block = [&](const AttentionRows& x, int64_t key) {
      return static_cast<const T*>(x.data) + x.offset(b, kv_head, key);
    };
    const int ahead = static_cast<int>(std::min<int64_t>(end - j - kBlock, kBlock));
    const auto next = [&](const AttentionRows& x) {
      return Ahead<T>{block(x, j) + kBlock * x.row,
                      x.row,
                      p.head_dim,
                      static_cast<int>(row / kRows),
                      static_cast<int>(ceil_div(rows, kRows)),
                      ahead};
    };
    C scores[kRows][kBlock];
    score_keys<T, kRows>(block(p.key, j), p.key.row, count, p.head_dim, queries + row * stride, stride,
                         scores, next(p.key));
    for (int r = 0; r < kRows; ++r)
      exponentials(scores[r], count, stride, Partial<C>(partials + (row + r) * partial_size, stride));
    add_values<T, kRows>(block(p.value, j), p.value.row, count, p.head_dim, scores,
                         partials + row * partial_size, partial_size, next(p.value));
  }
};

// Joins the chunks' partials of one row into the first, and writes it.
template <class C>
void join(const SpanAttentionForward& params, int64_t b, int64_t h, int64_t i, int64_t chunks, C* partials,
          int64_t chunk_size) {
  const SpanAttention& p = params.problem;
  const Storage<C>& io = storage(p.dtype, Type<C>{});
  const int64_t stride = padded_depth(p);
  const Partial<C> whole(partials, stride);
  C highest = *whole.maximum;
  for (int64_t chunk = 1; chunk < chunks; ++chunk)
    highest = std::max(highest, *Partial<C>(partials + chunk * chunk_size, stride).maximum);
  if (highest == -static_cast<C>(INFINITY)) highest = C(0);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    Partial<C> part(partials + chunk * chunk_size, stride);
    part.rescale(highest, stride);
    if (chunk == 0) continue;
    *whole.total += *part.total;
    for (int64_t d = 0; d < stride; d += kLanes<C>)
      store(whole.sum + d, load(whole.sum + d) + load(part.sum + d));
  }
  const C total = *whole.total;
  static_cast<C*>(params.lse.data)[params.lse.offset(b, h, i)] =
      (highest + std::log2(total)) * static_cast<C>(kLn2);
  io.write_rows(whole.sum, p.head_dim, total == C(0) ? C(0) : C(1) / total,
                io.range(params.out, b, h, i, 0, 1));
}

template <class T>
void decode_as(const SpanAttentionForward& params) {
  using C = Compute<T>;
  const SpanAttention& p = params.problem;
  const int64_t chunks = std::max<int64_t>(1, ceil_div(p.keys, kDecodeKeys)), heads = p.batch * p.kv_heads;
  const int64_t group = p.group(), chunk_size = p.rows * group * decode_partial(p);
  C* const partials = workspace<C>(Slot::sums, static_cast<size_t>(heads * chunks * chunk_size));
  parallel_for(heads * chunks, p.threads, [&](int64_t item) {
    const int64_t head = item / chunks, begin = item % chunks * kDecodeKeys;
    DecodeItem<T>(p, head / p.kv_heads, head % p.kv_heads, std::min(p.keys, begin + kDecodeKeys),
                  partials + item * chunk_size)
        .run(begin);
  });
  parallel_for(heads, p.threads, [&](int64_t head) {
    for (int64_t row = 0; row < p.rows * group; ++row)
      join(params, head / p.kv_heads, head % p.kv_heads * group + row % group, row / group, chunks,
           partials + head * chunks * chunk_size + row * decode_partial(p), chunk_size);
  });
}

}  // namespace

void decode(const SpanAttentionForward& params) {
  visit_floating(params.problem.dtype, [&]<class T>(Type<T>) { decode_as<T>(params); });
}

}  // namespace glm::cpu::GLM_ISA
