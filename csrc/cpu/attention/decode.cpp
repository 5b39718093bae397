// Attention forward for the few rows of a decoding step: the cache is read once, where it lies, at the speed
// of memory. D is in the lanes; a vector of keys is scored at a time. A work item is kDecodeKeys keys of a
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

// Adds keys [0, count), count <= kLanes, of one row.
template <class T>
void add_keys(const T* key, int64_t key_stride, const T* value, int64_t value_stride, int count,
              int64_t depth, int64_t stride, const Compute<T>* query, Partial<Compute<T>> partial) {
  using C = Compute<T>;
  constexpr int kStep = kLanes<C>;
  const int64_t whole = depth / kStep * kStep;
  const int tail = static_cast<int>(depth - whole);
  Vec<C> products[kStep] = {};
  for (int j = 0; j < count; ++j) {
    const T* row = key + j * key_stride;
    Vec<C> sum = {};
    for (int64_t d = 0; d < whole; d += kStep) sum = fma(load_as(row + d), load(query + d), sum);
    if (tail > 0) sum = fma(load_as_first(row + whole, tail), load(query + whole), sum);
    products[j] = sum;
  }
  transpose<C>(products);
  for (int half = kStep / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) products[j] += products[j + half];
  }
  C scores[kStep];
  store(scores, products[0]);
  for (int j = count; j < kStep; ++j) scores[j] = -static_cast<C>(INFINITY);

  const C highest = reduce_max(load(scores));  // NaN where a score is
  if (highest > *partial.maximum) partial.rescale(highest, stride);
  const C origin = *partial.maximum == -static_cast<C>(INFINITY) ? C(0) : *partial.maximum;
  const Vec<C> probs = exp2(load(scores) - origin);
  *partial.total += reduce_add(probs);
  store(scores, probs);
  for (int64_t d = 0; d < whole; d += kStep) {
    Vec<C> sum = load(partial.sum + d);
    for (int j = 0; j < count; ++j)
      sum = fma(load_as(value + j * value_stride + d), broadcast(scores[j]), sum);
    store(partial.sum + d, sum);
  }
  if (tail > 0) {
    Vec<C> sum = load(partial.sum + whole);
    for (int j = 0; j < count; ++j)
      sum = fma(load_as_first(value + j * value_stride + whole, tail), broadcast(scores[j]), sum);
    store(partial.sum + whole, sum);
  }
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
  for (int64_t j = begin; j < end; j += kLanes<C>) {
    const T* key = static_cast<const T*>(p.key.data) + p.key.offset(b, kv_head, j);
    const T* value = static_cast<const T*>(p.value.data) + p.value.offset(b, kv_head, j);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t seen = std::min(end, sequence.mask.row_end(row % p.rows)) - j;
      if (seen <= 0) continue;
      add_keys(key, p.key.row, value, p.value.row, static_cast<int>(std::min<int64_t>(seen, kLanes<C>)),
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
