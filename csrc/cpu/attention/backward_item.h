// A work item of attention backward: a chunk of the keys of one key head (backward.cpp).
#pragma once

#include <utility>

#include "cpu/attention/ahead.h"
#include "cpu/attention/backward_products.h"
#include "cpu/attention/storage.h"
#include "cpu/workspace.h"

namespace glm::cpu::GLM_ISA {

template <class P>
struct BackwardItem {
  using C = SumOf<P>;
  static constexpr int64_t kWidth = kPanelRows<C>, kPanels = kBackwardRows / kWidth;
  static constexpr int64_t kScoreTile = kBackwardKeys * kWidth;
  static constexpr bool kTwice = kIsPair<P>;  // what two products read, packed along either of their sums

  const SpanAttentionBackward& params;
  const SpanAttention& p;
  const Storage<P>& io;
  int64_t b, kv_head, group;
  SpanSequence sequence;
  int64_t depth, stride, steps;  // of a row: elements, padded, and packed
  int64_t padded_rows;
  int64_t first_live = 0;           // queries before this one see nothing
  bool have_statistics = false;     // lse and delta are read with the first block
  C* grad_queries;                  // [G][padded_rows / kWidth][stride][kWidth]
  C *lse, *delta;                   // [G][padded_rows], by slot, lse in units of log 2
  P *keys, *values;                 // [kBlockKeys][steps]
  P* key_columns;                   // [kBlockKeys in steps][stride]
  C *grad_keys, *grad_values;       // [kBlockKeys][stride]
  P *query_panel, *grad_out_panel;  // [kPanels][steps][kWidth]
  P *query_rows, *grad_out_rows;    // [kBackwardRows in steps][stride], in order of slots
  C *probs, *grads;                 // [kPanels][kBackwardKeys][kWidth]
  P* packed_grads;                  // [kBackwardKeys in steps][kWidth], of one panel
  RowsAhead ahead;

  BackwardItem(const SpanAttentionBackward& params, int64_t b, int64_t kv_head, C* chunk_grad_queries)
      : params(params),
        p(params.problem),
        io(storage(p.dtype, Type<P>{})),
        b(b),
        kv_head(kv_head),
        group(p.group()),
        sequence(p.sequence(b)),
        depth(p.head_dim),
        stride(padded(depth)),
        steps(row_steps<P>(depth)),
        padded_rows(round_up(sequence.rows, kBackwardRows)),
        ahead(p.head_dim * static_cast<int64_t>(io.bytes)) {
    const bool own = chunk_grad_queries == nullptr;
    C* scratch =
        workspace<C>(Slot::op, static_cast<size_t>(backward_scratch(p) + (own ? grad_query_chunk(p) : 0)));
    const auto take = [&](int64_t count) { return std::exchange(scratch, scratch + count); };
    const auto take_steps = [&](int64_t count) { return reinterpret_cast<P*>(take(count)); };
    static_assert(sizeof(P) == sizeof(C));
    keys = take_steps(kBlockKeys * steps), values = take_steps(kBlockKeys * steps);
    key_columns = kTwice ? take_steps(steps_of<P>(kBlockKeys) * stride) : keys;
    grad_keys = take(kBlockKeys * stride), grad_values = take(kBlockKeys * stride);
    query_panel = take_steps(kBackwardRows * steps), grad_out_panel = take_steps(kBackwardRows * steps);
    query_rows = take_steps(steps_of<P>(kBackwardRows) * stride);
    grad_out_rows = take_steps(steps_of<P>(kBackwardRows) * stride);
    probs = take(kBackwardRows * kBackwardKeys), grads = take(kBackwardRows * kBackwardKeys);
    packed_grads = take_steps(steps_of<P>(kBackwardKeys) * kWidth);
    lse = take(group * padded_rows), delta = take(group * padded_rows);
    grad_queries = own ? take(0) : chunk_grad_queries;
    const SpanMask& mask = sequence.mask;
    while (first_live < sequence.rows && mask.row_end(first_live) <= mask.begin) ++first_live;
  }

  int64_t head(int64_t g) const { return kv_head * group + g; }

  // Keys [begin, end): their gradients, and their part of the query gradients. `next` is what this thread
  // will probably do next, from key next_begin on; or null.
  void run(int64_t begin, int64_t end, const BackwardItem* next, int64_t next_begin) {
    std::fill(grad_queries, grad_queries + group * padded_rows * stride, C(0));
    for (int64_t j0 = begin; j0 < end; j0 += kBlockKeys) {
      const bool last = j0 + kBlockKeys >= end;
      block(j0, std::min(end, j0 + kBlockKeys), last ? next : this, last ? next_begin : j0 + kBlockKeys);
    }
  }

  // lse and delta of the panel at query i0, from its out and grad_out.
  void read_statistics(int64_t g, int64_t i0, const P* out_panel, const P* grad_panel) {
    C* const panel_lse = lse + g * padded_rows + i0;
    C* const panel_delta = delta + g * padded_rows + i0;
    multiply_slots(steps_of<P>(depth), out_panel, grad_panel, panel_delta);
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

  // Keys [j0, j1); block next_j0 of item `next` follows.
  void block(int64_t j0, int64_t j1, const BackwardItem* next, int64_t next_j0) {
    const int64_t count = round_up(j1 - j0, kRowMultiple), row = sequence.first_key + j0;
    std::fill(grad_keys, grad_keys + count * stride, C(0));
    std::fill(grad_values, grad_values + count * stride, C(0));
    const SpanMask& mask = sequence.mask;
    const int64_t end = sequence.rows > 0 ? std::min(j1, mask.seen_end(sequence.rows)) : 0;
    if (std::max(j0, mask.begin) < end) {
      const int64_t live = mask.begin - j0, last = end - j0;  // padding is not read
      io.read_rows(io.range(p.key, b, kv_head, row, live, last), count, depth, keys);
      if (kTwice) io.read_columns(io.range(p.key, b, kv_head, row, live, last), count, depth, key_columns);
      io.read_rows(io.range(p.value, b, kv_head, row, live, last), count, depth, values);
      const int64_t first = first_query(j0);
      for (int64_t g = 0; g < group; ++g) {
        for (int64_t i0 = first; i0 < sequence.rows; i0 += kBackwardRows) {
          ahead.clear();
          if (i0 + kBackwardRows < sequence.rows) {
            look_ahead_queries(*this, g, i0 + kBackwardRows);
          } else if (g + 1 < group) {
            look_ahead_queries(*this, g + 1, first);
          } else if (next != nullptr && next_j0 < next->sequence.keys) {
            look_ahead_block(*next, next_j0);
          }
          queries(g, i0, j0, end);
        }
      }
      have_statistics = true;  // later keys are seen by no other queries
    }
    io.write_rows(grad_keys, depth, static_cast<C>(p.scale),
                  io.range(params.grad_key, b, kv_head, row, 0, j1 - j0));
    io.write_rows(grad_values, depth, static_cast<C>(p.dropout.scale()),
                  io.range(params.grad_value, b, kv_head, row, 0, j1 - j0));
  }

  // The tile of queries at which those that see keys from j0 on begin.
  int64_t first_query(int64_t j0) const {
    return sequence.mask.first_row(std::max(j0, sequence.mask.begin)) / kBackwardRows * kBackwardRows;
  }

  void look_ahead_queries(const BackwardItem& item, int64_t g, int64_t i0) {
    const auto add = [&](const AttentionRows& x) {
      RowRange range = item.live_rows(x, g, i0);
      range.last = std::min(range.last, kBackwardRows);
      ahead.add(range, io.bytes);
    };
    add(params.grad_out), add(p.query);
    if (!item.have_statistics) add(params.out);
  }

  void look_ahead_block(const BackwardItem& item, int64_t j0) {
    const int64_t row = item.sequence.first_key + j0, last = std::min(kBlockKeys, item.sequence.keys - j0);
    ahead.add(io.range(p.key, item.b, item.kv_head, row, 0, last), io.bytes);
    ahead.add(io.range(p.value, item.b, item.kv_head, row, 0, last), io.bytes);
    if (item.first_query(j0) < item.sequence.rows) look_ahead_queries(item, 0, item.first_query(j0));
  }

  // Queries [i0, i0 + kBackwardRows) of head g of the group against the block's keys [j0, end).
  void queries(int64_t g, int64_t i0, int64_t j0, int64_t end) {
    const int64_t rows = std::min(kBackwardRows, sequence.rows - i0);
    read_queries(g, i0, rows);
    C* const grad_query = grad_queries + (g * padded_rows + i0) * stride;
    ahead.spread(ceil_div(end - j0, kBackwardKeys) * ceil_div(rows, kWidth) * kFetches);
    for (int64_t j = j0; j < end; j += kBackwardKeys) {
      const int64_t count = std::min(kBackwardKeys, end - j);
      score_tile(g, i0, rows, j, count, j - j0, grad_query);
    }
  }

  void read_queries(int64_t g, int64_t i0, int64_t rows) {
    for (int64_t i = 0; i < rows; i += kWidth) {
      P* const queries = query_panel + i * steps;
      P* const grads_out = grad_out_panel + i * steps;
      const int64_t copy = steps_of<P>(i) * stride;
      io.read_panel(live_rows(params.grad_out, g, i0 + i), depth, C(1), grads_out, grad_out_rows + copy);
      if (!have_statistics) {
        io.read_panel(live_rows(params.out, g, i0 + i), depth, C(1), queries, nullptr);
        read_statistics(g, i0 + i, queries, grads_out);
      }
      io.read_panel(live_rows(p.query, g, i0 + i), depth, query_factor<P>(p.scale * kLog2E), queries,
                    query_rows + copy);
    }
  }

  static constexpr int64_t kFetches = 2;  // of `ahead`, for each panel of a tile of scores

  // One tile of scores, and what it adds to all three gradients. Its keys are the block's from `at` on.
  void score_tile(int64_t g, int64_t i0, int64_t rows, int64_t j, int64_t count, int64_t at, C* grad_query) {
    int64_t seen[kPanels], both[kPanels], most = 0;
    for (int64_t panel = 0; panel < kPanels; ++panel) {
      const int64_t i = panel * kWidth;
      seen[panel] = both[panel] = 0;
      if (i >= rows) continue;
      const PanelView<C> view(sequence.mask, i0 + i, i0 + rows, j, count);
      seen[panel] = view.count, both[panel] = view.both;
      most = std::max(most, view.count);
      if (view.count == 0) continue;
      C* const panel_probs = probs + panel * kScoreTile;
      C* const panel_grads = grads + panel * kScoreTile;
      ahead.fetch();
      multiply_panel<P>(view, steps_of<P>(depth), keys + at * steps, steps, query_panel + i * steps,
                        panel_probs);
      multiply_panel<P>(view, steps_of<P>(depth), values + at * steps, steps, grad_out_panel + i * steps,
                        panel_grads);
      const int64_t statistics = g * padded_rows + i0 + i;
      visit_bool(!view.full, [&](auto masked) {
        const auto gradients = score_gradients<C, masked.value>(
            view, score_factor<P>(p.scale * kLog2E), static_cast<C>(p.dropout.scale()), lse + statistics,
            delta + statistics, panel_probs, panel_grads);
        if (p.dropout.active()) {
          for_kept_keys(AttentionDropout(p.dropout, b, head(g)), i0 + i, j, view.count, gradients, Vec<C>{});
        } else {
          for_kept_keys<C>(view.count, gradients);
        }
      });
      ahead.fetch();
      add_transposed<P, false>(stride, view.both, view.count, key_columns + steps_of<P>(at) * stride, stride,
                               pack_keys(view.count, panel_grads, packed_grads), nullptr,
                               grad_query + i * stride);
    }
    if (most == 0) return;
    const int64_t panels = ceil_div(rows, kWidth);
    const auto pack = [&](C* scores) {
      for (int64_t panel = 0; panel < panels; ++panel)
        pack_slots<P>(both[panel], seen[panel], most, scores + panel * kScoreTile);
      return reinterpret_cast<const P*>(scores);
    };
    add_to_keys(most, seen, both, panels, pack(grads), query_rows, grad_keys + at * stride);
    add_to_keys(most, seen, both, panels, pack(probs), grad_out_rows, grad_values + at * stride);
  }

  // sums [key][stride] += scores [panel][key][slot] times rows [slot][stride].
  void add_to_keys(int64_t most, const int64_t* seen, const int64_t* both, int64_t panels, const P* scores,
                   const P* rows, C* sums) {
    constexpr int kLane = kLanes<C>;
    int64_t d = 0;
    for (; d + 2 * kLane <= stride; d += 2 * kLane)
      add_columns<P, 2>(most, seen, both, panels, scores, kScoreTile, rows + d, sums + d, stride);
    for (; d < stride; d += kLane)
      add_columns<P, 1>(most, seen, both, panels, scores, kScoreTile, rows + d, sums + d, stride);
  }
};

}  // namespace glm::cpu::GLM_ISA
