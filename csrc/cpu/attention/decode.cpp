// Attention forward for the few rows of a decoding step: the cache is read once, where it lies, at the speed
// of memory. D is in the lanes; kBlock keys are scored at a time. A work item is kDecodeKeys keys of a
// key head, for all rows of its group; the items' partial softmaxes are joined in order.
#include "cpu/attention/decode.h"

#include <utility>

#include "cpu/attention/layout.h"
#include "cpu/attention/storage.h"
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

// scores[key] = query . key, of [0, count) keys.
template <class T>
void score_keys(const T* key, int64_t key_stride, int count, int64_t depth, const Compute<T>* query,
                Compute<T>* scores) {
  using C = Compute<T>;
  constexpr int kStep = kLanes<C>;
  const int64_t whole = depth / kStep * kStep;
  const int tail = static_cast<int>(depth - whole);
  for (int first = 0; first < count; first += kStep) {
    Vec<C> products[kStep] = {};
    for (int j = 0; j < std::min(kStep, count - first); ++j) {
      const T* row = key + (first + j) * key_stride;
      Vec<C> sum = {};
      for (int64_t d = 0; d < whole; d += kStep) sum = fma(load_as(row + d), load(query + d), sum);
      if (tail > 0) sum = fma(load_as_first(row + whole, tail), load(query + whole), sum);
      products[j] = sum;
    }
    transpose<C>(products);
    for (int half = kStep / 2; half > 0; half /= 2) {
      for (int j = 0; j < half; ++j) products[j] += products[j + half];
    }
    store(scores + first, products[0]);
  }
}

// sum[d] += sum_key probs[key] * value[key][d] for kVectors vectors of d, the last of them `last` elements.
template <class T, int kVectors>
void add_values(const T* value, int64_t value_stride, int count, int last, const Compute<T>* probs,
                Compute<T>* sum) {
  using C = Compute<T>;
  constexpr int kStep = kLanes<C>;
  Vec<C> at[kVectors];
  for (int v = 0; v < kVectors; ++v) at[v] = load(sum + v * kStep);
  for (int j = 0; j < count; ++j) {
    const T* row = value + j * value_stride;
    for (int v = 0; v < kVectors; ++v)
      at[v] = fma(load_as_some(row + v * kStep, v + 1 < kVectors ? kStep : last), broadcast(probs[j]), at[v]);
  }
  for (int v = 0; v < kVectors; ++v) store(sum + v * kStep, at[v]);
}

// Adds keys [0, count), count <= kBlock, of one row.
template <class T>
void add_keys(const T* key, int64_t key_stride, const T* value, int64_t value_stride, int count,
              int64_t depth, int64_t stride, const Compute<T>* query, Partial<Compute<T>> partial) {
  using C = Compute<T>;
  constexpr int kStep = kLanes<C>, kWide = 4 * kStep;
  C scores[kBlock];
  score_keys(key, key_stride, count, depth, query, scores);
  for (int j = count; j < kBlock; ++j) scores[j] = -static_cast<C>(INFINITY);

  Vec<C> highest = load(scores);
  for (int j = kStep; j < kBlock; j += kStep) highest = max(highest, load(scores + j));
  const C top = reduce_max(highest);  // NaN where a score is
  if (top > *partial.maximum) partial.rescale(top, stride);
  const C origin = *partial.maximum == -static_cast<C>(INFINITY) ? C(0) : *partial.maximum;
  Vec<C> total = {};
  for (int j = 0; j < kBlock; j += kStep) {
    const Vec<C> probs = exp2(load(scores + j) - origin);
    total += probs;
    store(scores + j, probs);
  }
  *partial.total += reduce_add(total);

  int64_t d = 0;
  for (; d + kWide <= depth; d += kWide)
    add_values<T, 4>(value + d, value_stride, count, kStep, scores, partial.sum + d);
  for (; d < depth; d += kStep)
    add_values<T, 1>(value + d, value_stride, count, static_cast<int>(std::min<int64_t>(kStep, depth - d)),
                     scores, partial.sum + d);
}

// Keys [begin, end) of a key head, for the rows of its group: partials [G * S].
template <class T>
void decode_chunk(const SpanAttention& p, int64_t b, int64_t kv_head, int64_t begin, int64_t end,
                  Compute<T>* partials) {
  using C = Compute<T>;
  const SpanSequence sequence = p.sequence(b);
  const int64_t rows = p.group() * p.rows, stride = padded_depth(p);
  const Storage<C>& io = storage(p.dtype, Type<C>{});
  C* const queries = workspace<C>(Slot::op, static_cast<size_t>(rows * stride));
  for (int64_t row = 0; row < rows; ++row) {
    C* const query = queries + row * stride;
    io.read_rows(io.range(p.query, b, kv_head * p.group() + row / p.rows, row % p.rows, 0, 1), 1, p.head_dim,
                 stride, query);
    for (int64_t d = 0; d < stride; ++d) query[d] *= static_cast<C>(p.scale * kLog2E);
    Partial<C>(partials + row * decode_partial(p), stride).clear(stride);
  }
  begin = std::max(begin, sequence.mask.begin);
  for (int64_t j = begin; j < end; j += kBlock) {
    const T* key = static_cast<const T*>(p.key.data) + p.key.offset(b, kv_head, j);
    const T* value = static_cast<const T*>(p.value.data) + p.value.offset(b, kv_head, j);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t seen = std::min(end, sequence.mask.row_end(row % p.rows)) - j;
      if (seen <= 0) continue;
      add_keys(key, p.key.row, value, p.value.row, static_cast<int>(std::min<int64_t>(seen, kBlock)),
               p.head_dim, stride, queries + row * stride,
               Partial<C>(partials + row * decode_partial(p), stride));
    }
  }
}

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
  io.write_rows(whole.sum, stride, p.head_dim, total == C(0) ? C(0) : C(1) / total,
                io.range(params.out, b, h, i, 0, 1));
}

template <class T>
void decode_as(const SpanAttentionForward& params) {
  using C = Compute<T>;
  const SpanAttention& p = params.problem;
  const int64_t chunks = std::max<int64_t>(1, ceil_div(p.keys, kDecodeKeys)), heads = p.batch * p.kv_heads;
  const int64_t rows = p.group() * p.rows, chunk_size = rows * decode_partial(p);
  C* const partials = workspace<C>(Slot::sums, static_cast<size_t>(heads * chunks * chunk_size));
  parallel_for(heads * chunks, p.threads, [&](int64_t item) {
    const int64_t head = item / chunks, begin = item % chunks * kDecodeKeys;
    decode_chunk<T>(p, head / p.kv_heads, head % p.kv_heads, begin, std::min(p.keys, begin + kDecodeKeys),
                    partials + item * chunk_size);
  });
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t row = 0; row < rows; ++row)
      join(params, head / p.kv_heads, head % p.kv_heads * p.group() + row / p.rows, row % p.rows, chunks,
           partials + head * chunks * chunk_size + row * decode_partial(p), chunk_size);
  }
}

}  // namespace

void decode(const SpanAttentionForward& params) {
  visit_floating(params.problem.dtype, [&]<class T>(Type<T>) { decode_as<T>(params); });
}

}  // namespace glm::cpu::GLM_ISA
