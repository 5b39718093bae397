// Attention forward. A work item is some queries of one head: transposed once into panels, they meet
// the keys they see in tiles of kForwardKeys, each widened once per item. Per panel and tile: scores with
// their running maximum, exp2 of the difference, out^T = out^T * correction + V^T P^T (Milakov & Gimelshein,
// "Online normalizer calculation for softmax", 2018). Scores and maxima are in units of log 2: scale *
// log2(e) is folded into the queries.
#include <optional>
#include <utility>

#include "core/dispatch.h"
#include "cpu/attention/ahead.h"
#include "cpu/attention/decode.h"
#include "cpu/attention/softmax.h"
#include "cpu/attention/storage.h"
#include "cpu/declarations.h"
#include "cpu/workspace.h"

namespace glm::cpu::GLM_ISA {
namespace {

// probs[key][slot] = scores of keys [begin, end) and the panel's vectors from kFirst on, and their maximum
// per slot into `top`.
template <class P, bool kMasked, int kFirst, class C = SumOf<P>>
GLM_INLINE void score_keys(int64_t begin, int64_t end, const P* keys, int64_t steps, int64_t stride,
                           const P* queries, C factor, const PanelView<C>& view, C* probs, Vec<C>* top) {
  constexpr int kVectors = kPanelVectors<C> - kFirst, kWidth = kPanelRows<C>;
  const Vec<C> hidden = broadcast(-static_cast<C>(INFINITY));
  for_row_tiles(end - begin, [&](auto height, int64_t row) GLM_INLINE_BODY {
    const int64_t key = begin + row;
    Tile<C, height.value, kVectors> tile;
    tile.clear();
    tile.accumulate(steps, keys + key * stride, stride, 1, queries + kFirst * kLanes<C>, kWidth);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Vec<C> highest = top[kFirst + v];
#pragma GCC unroll 16
      for (int r = 0; r < height.value; ++r) {
        Vec<C> score = tile.at[r][v];
        if constexpr (kIsPair<P>) score *= factor;
        if constexpr (kMasked) score = view.mask(key + r, kFirst + v, score, hidden);
        highest = at_least(score, highest);  // a NaN is lost here and comes back with exp2
        store(probs + (key + r) * kWidth + (kFirst + v) * kLanes<C>, score);
      }
      top[kFirst + v] = highest;
    }
  });
}

template <class P, bool kMasked, class C = SumOf<P>>
[[gnu::noinline]] void scores(const P* keys, int64_t steps, int64_t stride, const P* queries, C factor,
                              const PanelView<C>& view, C* probs, Vec<C>* top) {
  score_keys<P, kMasked, 0>(0, view.both, keys, steps, stride, queries, factor, view, probs, top);
  if constexpr (kMasked && kSplit<C>)
    score_keys<P, kMasked, 1>(view.both, view.count, keys, steps, stride, queries, factor, view, probs, top);
}

// probs = exp2(probs - maximum), dropout applied; adds the sum without dropout to `sum`.
template <class C>
GLM_INLINE auto exponentials(const Vec<C>* maximum, int64_t both, C* probs, Vec<C>* sum) {
  return [=](int64_t key, const auto& keep) GLM_INLINE_BODY {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors<C>; ++v) {
      if (kSplit<C> && v == 0 && key >= both) continue;
      C* const at = probs + key * kPanelRows<C> + v * kLanes<C>;
      const Vec<C> p = exp2_below_128(load(at) - maximum[v]);
      sum[v] += p;
      store(at, keep(v, p));
    }
  };
}

template <class P>
struct ForwardItem {
  using C = SumOf<P>;

  const SpanAttentionForward& params;
  const SpanAttention& p;
  const Storage<P>& io;
  int64_t b, h, i0, rows;  // queries [i0, i0 + rows) of head h of sequence b
  SpanSequence sequence;
  int64_t depth, stride, steps;  // of a row: elements, padded, and packed
  P* keys;                       // [kForwardKeys][steps]
  P* values;                     // [kForwardKeys in steps][stride]
  P* queries;                    // [panels][steps][kPanelRows]
  C* out;                        // [panels][stride][kPanelRows]
  C* probs;                      // [kForwardKeys][kPanelRows]
  C *maximum, *sum;              // [item_rows]
  RowsAhead ahead;

  ForwardItem(const SpanAttentionForward& params, int64_t b, int64_t h, int64_t i0, int64_t item_rows)
      : params(params),
        p(params.problem),
        io(storage(p.dtype, Type<P>{})),
        b(b),
        h(h),
        i0(i0),
        rows(0),
        sequence(p.sequence(b)),
        depth(p.head_dim),
        stride(padded(depth)),
        steps(row_steps<P>(depth)),
        ahead(p.head_dim * static_cast<int64_t>(io.bytes)) {
    rows = std::min(item_rows, sequence.rows - i0);
    if (rows <= 0) return;
    C* scratch = workspace<C>(Slot::op, static_cast<size_t>(forward_scratch(p)));
    const auto take = [&](int64_t count) { return std::exchange(scratch, scratch + count); };
    const auto take_steps = [&](int64_t count) { return reinterpret_cast<P*>(take(count)); };
    static_assert(sizeof(P) == sizeof(C));
    keys = take_steps(kForwardKeys * steps), values = take_steps(steps_of<P>(kForwardKeys) * stride);
    queries = take_steps(item_rows * steps), out = take(item_rows * stride);
    probs = take(kForwardKeys * kPanelRows<C>);
    maximum = take(item_rows), sum = take(item_rows);
  }

  int64_t panels() const { return ceil_div(rows, kPanelRows<C>); }

  RowRange query_rows(int64_t i) const {  // from i on, counted within the item
    return io.range(p.query, b, h, sequence.first_row + i0 + i, 0, rows - i);
  }

  RowRange out_rows(int64_t i) const {
    return io.range(params.out, b, h, sequence.first_row + i0 + i, 0, rows - i);
  }

  // Keys [j0, end) and what is padding around them, not to be read.
  RowRange key_rows(const AttentionRows& x, int64_t j0, int64_t end) const {
    return io.range(x, b, h / p.group(), sequence.first_key + j0, sequence.mask.begin - j0, end - j0);
  }

  int64_t first_tile() const { return sequence.mask.begin / kForwardKeys * kForwardKeys; }
  int64_t seen_end() const { return sequence.mask.seen_end(i0 + rows); }

  // `next`: what this thread will probably do next, or null.
  void run(const ForwardItem* next) {
    if (rows <= 0) return;
    for (int64_t i = 0; i < panels() * kPanelRows<C>; i += kPanelRows<C>)
      io.read_panel(query_rows(i), depth, query_factor<P>(p.scale * kLog2E), queries + i * steps, nullptr);
    std::fill(out, out + panels() * kPanelRows<C> * stride, C(0));
    std::fill(maximum, maximum + panels() * kPanelRows<C>, -static_cast<C>(INFINITY));
    std::fill(sum, sum + panels() * kPanelRows<C>, C(0));
    const int64_t end = seen_end();
    for (int64_t j0 = first_tile(); j0 < end; j0 += kForwardKeys) {
      read_keys(j0, std::min(end, j0 + kForwardKeys));
      look_ahead(j0 + kForwardKeys, next);
      for (int64_t panel = 0; panel < panels(); ++panel) {
        const PanelView<C> view(sequence.mask, i0 + panel * kPanelRows<C>, i0 + rows, j0, kForwardKeys);
        if (view.count > 0) add_tile(view, panel * kPanelRows<C>, j0);
      }
    }
    for (int64_t panel = 0; panel < panels(); ++panel) finish(panel * kPanelRows<C>);
  }

  // The keys from j0 on; or where the result goes, and the first rows of the next item.
  void look_ahead(int64_t j0, const ForwardItem* next) {
    ahead.clear();
    const bool last = j0 >= seen_end();
    if (last) ahead.add(out_rows(0), io.bytes);
    const ForwardItem* item = last ? next : this;
    if (item != nullptr && item->rows > 0) {
      if (last) j0 = next->first_tile(), ahead.add(next->query_rows(0), io.bytes);
      const int64_t end = std::min(item->seen_end(), j0 + kForwardKeys);
      ahead.add(item->key_rows(p.key, j0, end), io.bytes);
      ahead.add(item->key_rows(p.value, j0, end), io.bytes);
    }
    ahead.spread(kFetches * panels());
  }

  // Keys [j0, end) and zeros up to the row multiple.
  void read_keys(int64_t j0, int64_t end) {
    const int64_t count = round_up(end - j0, kRowMultiple);
    io.read_rows(key_rows(p.key, j0, end), count, depth, keys);
    io.read_columns(key_rows(p.value, j0, end), count, depth, values);
  }

  static constexpr int64_t kFetches = 3;  // of `ahead` in add_tile

  void add_tile(const PanelView<C>& view, int64_t i, int64_t j0) {
    constexpr int kVectors = kPanelVectors<C>;
    Vec<C> before[kVectors], top[kVectors], origin[kVectors], correction[kVectors], total[kVectors];
    for (int v = 0; v < kVectors; ++v) top[v] = before[v] = load(maximum + i + v * kLanes<C>);
    ahead.fetch();
    visit_bool(!view.full, [&](auto masked) {
      scores<P, masked.value>(keys, steps_of<P>(depth), steps, queries + i * steps,
                              score_factor<P>(p.scale * kLog2E), view, probs, top);
    });
    for (int v = 0; v < kVectors; ++v) {
      origin[v] = top[v] == -static_cast<C>(INFINITY) ? Vec<C>{} : top[v];  // nothing seen so far
      correction[v] = exp2_below_128(before[v] - origin[v]);
      total[v] = load(sum + i + v * kLanes<C>) * correction[v];
    }
    ahead.fetch();
    const auto exponential = exponentials(origin, view.both, probs, total);
    if (p.dropout.active()) {
      for_kept_keys(AttentionDropout(p.dropout, b, h), i0 + i, j0, view.count, exponential, Vec<C>{});
    } else {
      for_kept_keys<C>(view.count, exponential);
    }
    for (int v = 0; v < kVectors; ++v) {
      store(maximum + i + v * kLanes<C>, top[v]);
      store(sum + i + v * kLanes<C>, total[v]);
    }
    ahead.fetch();
    add_transposed<P, true>(stride, view.both, view.count, values, stride,
                            pack_keys(view.count, probs, reinterpret_cast<P*>(probs)), correction,
                            out + i * stride);
  }

  void finish(int64_t i) {
    const int64_t count = std::min<int64_t>(rows - i, kPanelRows<C>);
    C* lse = static_cast<C*>(params.lse.data) + params.lse.offset(b, h, sequence.first_row + i0 + i);
    for (int slot = 0; slot < kPanelRows<C>; ++slot) {
      C& total = sum[i + slot];
      const int64_t row = slot_row<C>(slot);
      if (row < count)
        lse[row * params.lse.row] = (maximum[i + slot] + std::log2(total)) * static_cast<C>(kLn2);
      total = total == C(0) ? C(0) : static_cast<C>(p.dropout.scale()) / total;
    }
    io.write_panel(out + i * stride, depth, sum + i, out_rows(i));
  }
};

template <class P>
void forward(const SpanAttentionForward& params) {
  using C = SumOf<P>;
  const SpanAttention& p = params.problem;
  if constexpr (!kIsPair<P>) {  // has none (cpu/avx512bf16.cpp)
    if (decodes(p)) return decode(params);
  }
  const int64_t rows = forward_rows(p);
  const int64_t tiles = ceil_div(max_rows(p), rows), heads = p.batch * p.heads;
  // The last queries see the most keys: the costly items go first.
  const int64_t items = tiles * heads, team = std::min<int64_t>(items, std::max(p.threads, 1));
  const auto item_at = [&](int64_t item) {
    const int64_t tile = tiles - 1 - item / heads, head = item % heads;
    return ForwardItem<P>(params, head / p.heads, head % p.heads, tile * rows, rows);
  };
  parallel_for(items, p.threads, [&](int64_t item) {
    std::optional<ForwardItem<P>> next;
    if (item + team < items) next.emplace(item_at(item + team));
    item_at(item).run(next ? &*next : nullptr);
  });
  if (p.cu_seqlens == nullptr) return;
  const Storage<P>& io = storage(p.dtype, Type<P>{});
  for (int64_t n = p.cu_seqlens[p.batch]; n < p.rows; ++n) {  // rows of no sequence
    for (int64_t h = 0; h < p.heads; ++h) {
      std::memset(io.at(params.out, 0, h, n), 0, static_cast<size_t>(p.head_dim) * io.bytes);
      static_cast<C*>(params.lse.data)[params.lse.offset(0, h, n)] = -static_cast<C>(INFINITY);
    }
  }
}

}  // namespace

void span_attention_forward(const SpanAttentionForward& params) {
  visit_packed(params.problem.dtype, [&]<class P>(Type<P>) { forward<P>(params); });
}

}  // namespace glm::cpu::GLM_ISA
