// Attention backward. Probabilities are computed again from lse, and with delta = rowsum(dO out) - dlse
// (out as it was rounded to its dtype: a row of few keys with dropout keeps that rounding in its dQ)
//   dS = P (dP - delta),  dP = V dO,  dQ = scale dS K,  dK = scale dS^T Q,  dV = P^T dO   (docs/math.md).
//
// A work item is a chunk of the keys of one key head: all of them, unless heads are fewer than threads are
// likely to be. Blocks of kBlockKeys stay in L2 with their gradients while the queries that see them pass by,
// kBackwardRows at a time. Every sum has one order: dK and dV over the heads of the group and then the
// queries, dQ over the keys; chunks have query gradients of their own, added in order at the end.
#include <utility>

#include "core/dispatch.h"
#include "cpu/attention/softmax.h"
#include "cpu/attention/storage.h"
#include "cpu/declarations.h"
#include "cpu/workspace.h"

namespace glm::cpu::GLM_ISA {
namespace {

// out[key][slot] = sum_d a[key][d] b[d][slot]
template <class C>
[[gnu::noinline]] void multiply_panel(int64_t keys, int64_t depth, const C* a, int64_t stride, const C* b,
                                      C* out) {
  constexpr int kVectors = kPanelVectors<C>, kWidth = kPanelRows<C>;
  for_row_tiles(keys, [&](auto height, int64_t key) GLM_INLINE_BODY {
    Tile<C, height.value, kVectors> tile;
    tile.clear();
    tile.accumulate(depth, a + key * stride, stride, 1, b, kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < height.value; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) store(out + (key + r) * kWidth + v * kLanes<C>, tile.at[r][v]);
    }
  });
}

// out[slot] = sum_d a[d][slot] b[d][slot], in the order of multiply_panel: a row that sees one key has an
// exact zero in dP - delta.
template <class C>
void multiply_slots(int64_t depth, const C* a, const C* b, C* out) {
  for (int slot = 0; slot < kPanelRows<C>; slot += kLanes<C>) {
    Vec<C> sum = {};
    for (int64_t d = 0; d < depth; ++d)
      sum = fma(load(a + d * kPanelRows<C> + slot), load(b + d * kPanelRows<C> + slot), sum);
    store(out + slot, sum);
  }
}

// out[key][d] += sum_slot a[key][slot] b[slot][d] over kVectors vectors of d and the panels that a tile of
// keys is seen by: panel p sees seen[p] keys, none fewer than the one before.
template <class C, int kVectors>
[[gnu::noinline]] void add_columns(int64_t keys, const int64_t* seen, int64_t panels, const C* a,
                                   int64_t a_panel, const C* b, C* out, int64_t stride) {
  constexpr int kWidth = kPanelRows<C>;
  for_row_tiles(keys, [&](auto height, int64_t key) GLM_INLINE_BODY {
    Tile<C, height.value, kVectors> tile;
    C* const at = out + key * stride;
#pragma GCC unroll 16
    for (int r = 0; r < height.value; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) tile.at[r][v] = load(at + r * stride + v * kLanes<C>);
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
      if (seen[panel] <= key) continue;
      tile.accumulate(kWidth, a + panel * a_panel + key * kWidth, kWidth, 1, b + panel * kWidth * stride,
                      stride);
    }
#pragma GCC unroll 16
    for (int r = 0; r < height.value; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) store(at + r * stride + v * kLanes<C>, tile.at[r][v]);
    }
  });
}

// From scores and dP to (dropped) probabilities and dS, in place.
template <class C, bool kMasked>
GLM_INLINE auto score_gradients(const PanelView<C>& view, C keep_scale, const C* lse, const C* delta,
                                C* probs, C* grads) {
  return [=, &view](int64_t key, const auto& keep) GLM_INLINE_BODY {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors<C>; ++v) {
      const int64_t at = key * kPanelRows<C> + v * kLanes<C>;
      Vec<C> p = exp2(load(probs + at) - load(lse + v * kLanes<C>));
      if constexpr (kMasked) p = view.mask(key, v, p, Vec<C>{});
      store(grads + at,
            p * fma(keep(v, load(grads + at)), broadcast(keep_scale), -load(delta + v * kLanes<C>)));
      store(probs + at, keep(v, p));
    }
  };
}

template <class C>
struct BackwardItem {
  static constexpr int64_t kWidth = kPanelRows<C>, kPanels = kBackwardRows / kWidth;
  static constexpr int64_t kScoreTile = kBackwardKeys * kWidth;

  const SpanAttentionBackward& params;
  const SpanAttention& p;
  const Storage<C>& io;
  int64_t b, kv_head, group;
  SpanSequence sequence;
  int64_t depth, stride, padded_rows;
  int64_t first_live = 0;           // queries before this one see nothing
  bool have_statistics = false;     // lse and delta are read with the first block
  C* grad_queries;                  // [G][padded_rows / kWidth][stride][kWidth]
  C *lse, *delta;                   // [G][padded_rows], by slot, lse in units of log 2
  C *keys, *values;                 // [kBlockKeys][stride]
  C *grad_keys, *grad_values;       // likewise
  C *query_panel, *grad_out_panel;  // [kPanels][stride][kWidth]
  C *query_rows, *grad_out_rows;    // [kBackwardRows][stride], in order of slots
  C *probs, *grads;                 // [kPanels][kBackwardKeys][kWidth]

  BackwardItem(const SpanAttentionBackward& params, int64_t b, int64_t kv_head, C* chunk_grad_queries)
      : params(params),
        p(params.problem),
        io(storage(p.dtype, Type<C>{})),
        b(b),
        kv_head(kv_head),
        group(p.group()),
        sequence(p.sequence(b)),
        depth(p.head_dim),
        stride(padded_depth(p)),
        padded_rows(round_up(sequence.rows, kBackwardRows)) {
    const bool own = chunk_grad_queries == nullptr;
    C* scratch =
        workspace<C>(Slot::op, static_cast<size_t>(backward_scratch(p) + (own ? grad_query_chunk(p) : 0)));
    const auto take = [&](int64_t count) { return std::exchange(scratch, scratch + count); };
    keys = take(kBlockKeys * stride), values = take(kBlockKeys * stride);
    grad_keys = take(kBlockKeys * stride), grad_values = take(kBlockKeys * stride);
    query_panel = take(kBackwardRows * stride), grad_out_panel = take(kBackwardRows * stride);
    query_rows = take(kBackwardRows * stride), grad_out_rows = take(kBackwardRows * stride);
    probs = take(kBackwardRows * kBackwardKeys), grads = take(kBackwardRows * kBackwardKeys);
    lse = take(group * padded_rows), delta = take(group * padded_rows);
    grad_queries = own ? take(0) : chunk_grad_queries;
    const SpanMask& mask = sequence.mask;
    while (first_live < sequence.rows && mask.row_end(first_live) <= mask.begin) ++first_live;
  }

  int64_t head(int64_t g) const { return kv_head * group + g; }

  // Keys [begin, end): their gradients, and their part of the query gradients.
  void run(int64_t begin, int64_t end) {
    std::fill(grad_queries, grad_queries + group * padded_rows * stride, C(0));
    for (int64_t j0 = begin; j0 < end; j0 += kBlockKeys) block(j0, std::min(end, j0 + kBlockKeys));
  }

  // lse and delta of the panel at query i0, from its out and grad_out.
  void read_statistics(int64_t g, int64_t i0, const C* out_panel, const C* grad_panel) {
    C* const panel_lse = lse + g * padded_rows + i0;
    C* const panel_delta = delta + g * padded_rows + i0;
    multiply_slots(depth, out_panel, grad_panel, panel_delta);
    for (int slot = 0; slot < kWidth; ++slot) {
      const int64_t i = i0 + slot_row<C>(slot), row = sequence.first_row + i;
      panel_lse[slot] = static_cast<C>(INFINITY);  // a row that sees nothing has no probabilities
      if (i < first_live || i >= sequence.rows) continue;
      panel_lse[slot] =
          static_cast<C>(kLog2E) * static_cast<const C*>(params.lse.data)[params.lse.offset(b, head(g), row)];
      if (params.grad_lse.data != nullptr)
        panel_delta[slot] -=
            static_cast<const C*>(params.grad_lse.data)[params.grad_lse.offset(b, head(g), row)];
    }
  }

  // The panel at query i0 of head g of the group; rows that see nothing are not read.
  RowRange live_rows(const AttentionRows& x, int64_t g, int64_t i0) const {
    return io.range(x, b, head(g), sequence.first_row + i0, first_live - i0, sequence.rows - i0);
  }

  void block(int64_t j0, int64_t j1) {
    const int64_t count = round_up(j1 - j0, kRowMultiple), row = sequence.first_key + j0;
    std::fill(grad_keys, grad_keys + count * stride, C(0));
    std::fill(grad_values, grad_values + count * stride, C(0));
    const SpanMask& mask = sequence.mask;
    const int64_t end = sequence.rows > 0 ? std::min(j1, mask.seen_end(sequence.rows)) : 0;
    if (std::max(j0, mask.begin) < end) {
      const int64_t live = mask.begin - j0, last = end - j0;  // padding is not read
      io.read_rows(io.range(p.key, b, kv_head, row, live, last), count, depth, stride, keys);
      io.read_rows(io.range(p.value, b, kv_head, row, live, last), count, depth, stride, values);
      const int64_t first = mask.first_row(std::max(j0, mask.begin)) / kBackwardRows * kBackwardRows;
      for (int64_t g = 0; g < group; ++g) {
        for (int64_t i0 = first; i0 < sequence.rows; i0 += kBackwardRows) queries(g, i0, j0, end);
      }
      have_statistics = true;  // later keys are seen by no other queries
    }
    io.write_rows(grad_keys, stride, depth, static_cast<C>(p.scale),
                  io.range(params.grad_key, b, kv_head, row, 0, j1 - j0));
    io.write_rows(grad_values, stride, depth, static_cast<C>(p.dropout.scale()),
                  io.range(params.grad_value, b, kv_head, row, 0, j1 - j0));
  }

  // Queries [i0, i0 + kBackwardRows) of head g of the group against the block's keys [j0, end).
  void queries(int64_t g, int64_t i0, int64_t j0, int64_t end) {
    const int64_t rows = std::min(kBackwardRows, sequence.rows - i0);
    read_queries(g, i0, rows);
    C* const grad_query = grad_queries + (g * padded_rows + i0) * stride;
    for (int64_t j = j0; j < end; j += kBackwardKeys) {
      const int64_t count = std::min(kBackwardKeys, end - j);
      score_tile(g, i0, rows, j, count, keys + (j - j0) * stride, values + (j - j0) * stride,
                 grad_keys + (j - j0) * stride, grad_values + (j - j0) * stride, grad_query);
    }
  }

  void read_queries(int64_t g, int64_t i0, int64_t rows) {
    for (int64_t i = 0; i < rows; i += kWidth) {
      C* const queries = query_panel + i * stride;
      C* const grads_out = grad_out_panel + i * stride;
      io.read_panel(live_rows(params.grad_out, g, i0 + i), depth, stride, C(1), grads_out,
                    grad_out_rows + i * stride);
      if (!have_statistics) {
        io.read_panel(live_rows(params.out, g, i0 + i), depth, stride, C(1), queries, nullptr);
        read_statistics(g, i0 + i, queries, grads_out);
      }
      io.read_panel(live_rows(p.query, g, i0 + i), depth, stride, static_cast<C>(p.scale * kLog2E), queries,
                    query_rows + i * stride);
    }
  }

  // One tile of scores, and what it adds to all three gradients.
  void score_tile(int64_t g, int64_t i0, int64_t rows, int64_t j, int64_t count, const C* key, const C* value,
                  C* grad_key, C* grad_value, C* grad_query) {
    int64_t seen[kPanels], most = 0;
    for (int64_t panel = 0; panel < kPanels; ++panel) {
      const int64_t i = panel * kWidth;
      seen[panel] = 0;
      if (i >= rows) continue;
      const PanelView<C> view(sequence.mask, i0 + i, i0 + rows, j, count);
      seen[panel] = view.count;
      most = std::max(most, view.count);
      if (view.count == 0) continue;
      C* const panel_probs = probs + panel * kScoreTile;
      C* const panel_grads = grads + panel * kScoreTile;
      multiply_panel(view.count, depth, key, stride, query_panel + i * stride, panel_probs);
      multiply_panel(view.count, depth, value, stride, grad_out_panel + i * stride, panel_grads);
      const int64_t statistics = g * padded_rows + i0 + i;
      visit_bool(!view.full, [&](auto masked) {
        const auto gradients =
            score_gradients<C, masked.value>(view, static_cast<C>(p.dropout.scale()), lse + statistics,
                                             delta + statistics, panel_probs, panel_grads);
        if (p.dropout.active()) {
          for_kept_keys(AttentionDropout(p.dropout, b, head(g)), i0 + i, j, view.count, gradients, Vec<C>{});
        } else {
          for_kept_keys<C>(view.count, gradients);
        }
      });
      add_transposed<C, false>(stride, view.count, key, stride, panel_grads, nullptr,
                               grad_query + i * stride);
    }
    if (most == 0) return;
    // A tile of keys may reach past what a panel sees: there it finds zeros.
    const int64_t panels = ceil_div(rows, kWidth);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t last = std::min(most, seen[panel] + kTallRows);
      std::fill(probs + panel * kScoreTile + seen[panel] * kWidth, probs + panel * kScoreTile + last * kWidth,
                C(0));
      std::fill(grads + panel * kScoreTile + seen[panel] * kWidth, grads + panel * kScoreTile + last * kWidth,
                C(0));
    }
    constexpr int kLane = kLanes<C>;
    int64_t d = 0;
    for (; d + 2 * kLane <= stride; d += 2 * kLane) {
      add_columns<C, 2>(most, seen, panels, grads, kScoreTile, query_rows + d, grad_key + d, stride);
      add_columns<C, 2>(most, seen, panels, probs, kScoreTile, grad_out_rows + d, grad_value + d, stride);
    }
    for (; d < stride; d += kLane) {
      add_columns<C, 1>(most, seen, panels, grads, kScoreTile, query_rows + d, grad_key + d, stride);
      add_columns<C, 1>(most, seen, panels, probs, kScoreTile, grad_out_rows + d, grad_value + d, stride);
    }
  }
};

// The chunks' parts of panel [i, i + kPanelRows) of head h, added in order, scaled and written.
template <class C>
void write_grad_query(const SpanAttentionBackward& params, int64_t b, int64_t h, int64_t i, C* parts,
                      int64_t chunks, int64_t chunk_size) {
  const SpanAttention& p = params.problem;
  const Storage<C>& io = storage(p.dtype, Type<C>{});
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

template <class C>
void backward(const SpanAttentionBackward& params) {
  const SpanAttention& p = params.problem;
  const int64_t chunks = backward_chunks(p), chunk_size = grad_query_chunk(p);
  const int64_t chunk_keys = round_up(ceil_div(max_keys(p), chunks), kBackwardKeys);
  C* const parts =
      chunks == 1 ? nullptr
                  : workspace<C>(Slot::sums, static_cast<size_t>(p.batch * p.kv_heads * chunks * chunk_size));
  // Early keys are seen by the most queries: the costly items go first.
  parallel_for(p.batch * p.kv_heads * chunks, p.threads, [&](int64_t item) {
    const int64_t head = item % (p.batch * p.kv_heads), chunk = item / (p.batch * p.kv_heads);
    const int64_t b = head / p.kv_heads, kv_head = head % p.kv_heads;
    BackwardItem<C> work(params, b, kv_head, parts ? parts + (head * chunks + chunk) * chunk_size : nullptr);
    const int64_t keys = work.sequence.keys;
    work.run(std::min(keys, chunk * chunk_keys), std::min(keys, (chunk + 1) * chunk_keys));
    if (chunks > 1) return;
    for (int64_t g = 0; g < work.group; ++g) {
      for (int64_t i = 0; i < work.sequence.rows; i += kPanelRows<C>)
        write_grad_query(params, b, work.head(g), i, work.grad_queries, 1, chunk_size);
    }
  });
  if (chunks > 1) {
    const int64_t panels = ceil_div(max_rows(p), kPanelRows<C>);
    parallel_for(p.batch * p.heads * panels, p.threads, [&](int64_t item) {
      const int64_t b = item / (p.heads * panels), h = item / panels % p.heads,
                    i = item % panels * kPanelRows<C>;
      C* const head_parts = parts + (b * p.kv_heads + h / p.group()) * chunks * chunk_size;
      if (i < p.sequence(b).rows) write_grad_query(params, b, h, i, head_parts, chunks, chunk_size);
    });
  }
  if (p.cu_seqlens == nullptr) return;
  const Storage<C>& io = storage(p.dtype, Type<C>{});
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
  if (params.problem.dtype == DType::f64) {
    backward<double>(params);
  } else {
    backward<float>(params);
  }
}

}  // namespace glm::cpu::GLM_ISA
