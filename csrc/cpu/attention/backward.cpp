// Attention backward. Probabilities are computed again from lse, and with delta = rowsum(dO out) - dlse
// (out as it was rounded to its dtype: a row of few keys with dropout keeps that rounding in its dQ)
//   dS = P (dP - delta),  dP = V dO,  dQ = scale dS K,  dK = scale dS^T Q,  dV = P^T dO   (docs/math.md).
//
// A work item is a chunk of the keys of one key head: all of them, unless heads are fewer than threads are
// likely to be. Blocks of kBlockKeys stay in L2 with their gradients while the queries that see them pass by,
// kBackwardRows at a time. Every sum has one order: dK and dV over the heads of the group and then the
// queries, dQ over the keys; chunks have query gradients of their own, added in order at the end.
#include <optional>

#include "core/dispatch.h"
#include "cpu/attention/backward_item.h"
#include "cpu/declarations.h"

namespace glm::cpu::GLM_ISA {
namespace {

// The chunks' parts of panel [i, i + kPanelRows) of head h, added in order, scaled and written.
template <class P, class C = SumOf<P>>
void write_grad_query(const SpanAttentionBackward& params, int64_t b, int64_t h, int64_t i, C* parts,
                      int64_t chunks, int64_t chunk_size) {
  const SpanAttention& p = params.problem;
  const Storage<P>& io = storage(p.dtype, Type<P>{});
  const SpanSequence sequence = p.sequence(b);
  const int64_t stride = padded_depth(p);
  C* const panel = parts + (h % p.group() * round_up(sequence.rows, kBackwardRows) + i) * stride;
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    const C* other = panel + chunk * chunk_size;
    for (int64_t k = 0; k < stride * kPanelRows<C>; k += kLanes<C>)
      store(panel + k, load(panel + k) + load(other + k));
  }
  C scale[kPanelRows<C>];
  std::fill(scale, scale + kPanelRows<C>, static_cast<C>(p.scale));
  io.write_panel(panel, p.head_dim, scale,
                 io.range(params.grad_query, b, h, sequence.first_row + i, 0, sequence.rows - i));
}

template <class P>
void backward(const SpanAttentionBackward& params) {
  using C = SumOf<P>;
  const SpanAttention& p = params.problem;
  const int64_t chunks = backward_chunks(p), chunk_size = grad_query_chunk(p);
  const int64_t chunk_keys = round_up(ceil_div(max_keys(p), chunks), kBackwardKeys);
  C* const parts =
      chunks == 1 ? nullptr
                  : workspace<C>(Slot::sums, static_cast<size_t>(p.batch * p.kv_heads * chunks * chunk_size));
  // Early keys are seen by the most queries: the costly items go first.
  const int64_t heads = p.batch * p.kv_heads, items = heads * chunks;
  const int64_t team = std::min<int64_t>(items, std::max(p.threads, 1));
  const auto item_at = [&](int64_t item) {
    const int64_t head = item % heads, chunk = item / heads;
    return BackwardItem<P>(params, head / p.kv_heads, head % p.kv_heads,
                           parts ? parts + (head * chunks + chunk) * chunk_size : nullptr);
  };
  parallel_for(items, p.threads, [&](int64_t item) {
    std::optional<BackwardItem<P>> next;
    if (item + team < items) next.emplace(item_at(item + team));
    BackwardItem<P> work = item_at(item);
    const int64_t keys = work.sequence.keys, begin = item / heads * chunk_keys;
    work.run(std::min(keys, begin), std::min(keys, begin + chunk_keys), next ? &*next : nullptr,
             (item + team) / heads * chunk_keys);
    if (chunks > 1) return;
    for (int64_t g = 0; g < work.group; ++g) {
      for (int64_t i = 0; i < work.sequence.rows; i += kPanelRows<C>)
        write_grad_query<P>(params, work.b, work.head(g), i, work.grad_queries, 1, chunk_size);
    }
  });
  if (chunks > 1) {
    const int64_t panels = ceil_div(max_rows(p), kPanelRows<C>);
    parallel_for(p.batch * p.heads * panels, p.threads, [&](int64_t item) {
      const int64_t b = item / (p.heads * panels), h = item / panels % p.heads,
                    i = item % panels * kPanelRows<C>;
      C* const head_parts = parts + (b * p.kv_heads + h / p.group()) * chunks * chunk_size;
      if (i < p.sequence(b).rows) write_grad_query<P>(params, b, h, i, head_parts, chunks, chunk_size);
    });
  }
  if (p.cu_seqlens == nullptr) return;
  const Storage<P>& io = storage(p.dtype, Type<P>{});
  const size_t row_bytes = static_cast<size_t>(p.head_dim) * io.bytes;
  for (int64_t n = p.cu_seqlens[p.batch]; n < p.rows; ++n) {  // rows of no sequence
    for (int64_t h = 0; h < p.heads; ++h) std::memset(io.at(params.grad_query, 0, h, n), 0, row_bytes);
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      std::memset(io.at(params.grad_key, 0, h, n), 0, row_bytes);
      std::memset(io.at(params.grad_value, 0, h, n), 0, row_bytes);
    }
  }
}

}  // namespace

void span_attention_backward(const SpanAttentionBackward& params) {
  visit_packed(params.problem.dtype, [&]<class P>(Type<P>) { backward<P>(params); });
}

}  // namespace glm::cpu::GLM_ISA
