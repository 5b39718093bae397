// Attention forward. A work item is some queries of one head: transposed once into panels, they meet
// the keys they see in tiles of kForwardKeys, each widened once per item. Per panel and tile: scores with
// their running maximum, exp2 of the difference, out^T = out^T * correction + V^T P^T (Milakov & Gimelshein,
// "Online normalizer calculation for softmax", 2018). Scores and maxima are in units of log 2: scale *
// log2(e) is folded into the queries.
#include <utility>

#include "core/dispatch.h"
#include "cpu/attention/decode.h"
#include "cpu/attention/softmax.h"
#include "cpu/attention/storage.h"
#include "cpu/declarations.h"
#include "cpu/workspace.h"

namespace glm::cpu::GLM_ISA {
namespace {

// probs[key][slot] = scores, and their maximum per slot into `top`.
template <class C, bool kMasked>
[[gnu::noinline]] void scores(const C* keys, int64_t depth, int64_t stride, const C* queries,
                              const PanelView<C>& view, C* probs, Vec<C>* top) {
  constexpr int kVectors = kPanelVectors<C>, kWidth = kPanelRows<C>;
  const Vec<C> hidden = broadcast(-static_cast<C>(INFINITY));
  for_row_tiles(view.count, [&](auto height, int64_t key) GLM_INLINE_BODY {
    Tile<C, height.value, kVectors> tile;
    tile.clear();
    tile.accumulate(depth, keys + key * stride, stride, 1, queries, kWidth);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Vec<C> highest = top[v];
#pragma GCC unroll 16
      for (int r = 0; r < height.value; ++r) {
        Vec<C> score = tile.at[r][v];
        if constexpr (kMasked) score = view.mask(key + r, v, score, hidden);
        highest = at_least(score, highest);  // a NaN is lost here and comes back with exp2
        store(probs + (key + r) * kWidth + v * kLanes<C>, score);
      }
      top[v] = highest;
    }
  });
}

// probs = exp2(probs - maximum), dropout applied; adds the sum without dropout to `sum`.
template <class C>
GLM_INLINE auto exponentials(const Vec<C>* maximum, C* probs, Vec<C>* sum) {
  return [=](int64_t key, const auto& keep) GLM_INLINE_BODY {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors<C>; ++v) {
      C* const at = probs + key * kPanelRows<C> + v * kLanes<C>;
      const Vec<C> p = exp2(load(at) - maximum[v]);
      sum[v] += p;
      store(at, keep(v, p));
    }
  };
}

template <class C>
struct ForwardItem {
  const SpanAttentionForward& params;
  const SpanAttention& p;
  const Storage<C>& io;
  int64_t b, h, i0, rows;  // queries [i0, i0 + rows) of head h of sequence b
  SpanSequence sequence;
  int64_t depth, stride;
  C *keys, *values;  // [kForwardKeys][stride]
  C *queries, *out;  // [panels][stride][kPanelRows]
  C* probs;          // [kForwardKeys][kPanelRows]
  C *maximum, *sum;  // [item_rows]

  ForwardItem(const SpanAttentionForward& params, int64_t b, int64_t h, int64_t i0, int64_t item_rows)
      : params(params),
        p(params.problem),
        io(storage(p.dtype, Type<C>{})),
        b(b),
        h(h),
        i0(i0),
        rows(0),
        sequence(p.sequence(b)),
        depth(p.head_dim),
        stride(padded_depth(p)) {
    rows = std::min(item_rows, sequence.rows - i0);
    if (rows <= 0) return;
    C* scratch = workspace<C>(Slot::op, static_cast<size_t>(forward_scratch(p)));
    const auto take = [&](int64_t count) { return std::exchange(scratch, scratch + count); };
    keys = take(kForwardKeys * stride), values = take(kForwardKeys * stride);
    queries = take(item_rows * stride), out = take(item_rows * stride);
    probs = take(kForwardKeys * kPanelRows<C>);
    maximum = take(item_rows), sum = take(item_rows);
  }

  int64_t panels() const { return ceil_div(rows, kPanelRows<C>); }

  void run() {
    if (rows <= 0) return;
    for (int64_t panel = 0; panel < panels(); ++panel) {
      const int64_t i = panel * kPanelRows<C>;
      io.read_panel(io.range(p.query, b, h, sequence.first_row + i0 + i, 0, rows - i), depth, stride,
                    static_cast<C>(p.scale * kLog2E), queries + i * stride, nullptr);
    }
    std::fill(out, out + panels() * kPanelRows<C> * stride, C(0));
    std::fill(maximum, maximum + panels() * kPanelRows<C>, -static_cast<C>(INFINITY));
    std::fill(sum, sum + panels() * kPanelRows<C>, C(0));
    const SpanMask& mask = sequence.mask;
    const int64_t end = mask.seen_end(i0 + rows);
    for (int64_t j0 = mask.begin / kForwardKeys * kForwardKeys; j0 < end; j0 += kForwardKeys) {
      read_keys(j0, std::min(end, j0 + kForwardKeys));
      for (int64_t panel = 0; panel < panels(); ++panel) {
        const PanelView<C> view(mask, i0 + panel * kPanelRows<C>, i0 + rows, j0, kForwardKeys);
        if (view.count > 0) add_tile(view, panel * kPanelRows<C>, j0);
      }
    }
    for (int64_t panel = 0; panel < panels(); ++panel) finish(panel * kPanelRows<C>);
  }

  // Keys [j0, end) and zeros up to the row multiple; padding before mask.begin is not read.
  void read_keys(int64_t j0, int64_t end) {
    const int64_t kv_head = h / p.group(), row = sequence.first_key + j0;
    const int64_t first = sequence.mask.begin - j0, last = end - j0, count = round_up(last, kRowMultiple);
    io.read_rows(io.range(p.key, b, kv_head, row, first, last), count, depth, stride, keys);
    io.read_rows(io.range(p.value, b, kv_head, row, first, last), count, depth, stride, values);
  }

  void add_tile(const PanelView<C>& view, int64_t i, int64_t j0) {
    constexpr int kVectors = kPanelVectors<C>;
    Vec<C> before[kVectors], top[kVectors], origin[kVectors], correction[kVectors], total[kVectors];
    for (int v = 0; v < kVectors; ++v) top[v] = before[v] = load(maximum + i + v * kLanes<C>);
    if (view.full) {
      scores<C, false>(keys, depth, stride, queries + i * stride, view, probs, top);
    } else {
      scores<C, true>(keys, depth, stride, queries + i * stride, view, probs, top);
    }
    for (int v = 0; v < kVectors; ++v) {
      origin[v] = top[v] == -static_cast<C>(INFINITY) ? Vec<C>{} : top[v];  // nothing seen so far
      correction[v] = exp2(before[v] - origin[v]);
      total[v] = load(sum + i + v * kLanes<C>) * correction[v];
    }
    const auto exponential = exponentials(origin, probs, total);
    if (p.dropout.active()) {
      for_kept_keys(AttentionDropout(p.dropout, b, h), i0 + i, j0, view.count, exponential, Vec<C>{});
    } else {
      for_kept_keys<C>(view.count, exponential);
    }
    for (int v = 0; v < kVectors; ++v) {
      store(maximum + i + v * kLanes<C>, top[v]);
      store(sum + i + v * kLanes<C>, total[v]);
    }
    add_transposed<C, true>(stride, view.count, values, stride, probs, correction, out + i * stride);
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
    io.write_panel(out + i * stride, depth, sum + i,
                   io.range(params.out, b, h, sequence.first_row + i0 + i, 0, count));
  }
};

template <class C>
void forward(const SpanAttentionForward& params) {
  const SpanAttention& p = params.problem;
  if (decodes(p)) return decode(params);
  const int64_t rows = forward_rows(p);
  const int64_t tiles = ceil_div(max_rows(p), rows), heads = p.batch * p.heads;
  // The last queries see the most keys: the costly items go first.
  parallel_for(tiles * heads, p.threads, [&](int64_t item) {
    const int64_t tile = tiles - 1 - item / heads, head = item % heads;
    ForwardItem<C>(params, head / p.heads, head % p.heads, tile * rows, rows).run();
  });
  if (p.cu_seqlens == nullptr) return;
  const Storage<C>& io = storage(p.dtype, Type<C>{});
  for (int64_t n = p.cu_seqlens[p.batch]; n < p.rows; ++n) {  // rows of no sequence
    for (int64_t h = 0; h < p.heads; ++h) {
      std::memset(io.at(params.out, 0, h, n), 0, static_cast<size_t>(p.head_dim) * io.bytes);
      static_cast<C*>(params.lse.data)[params.lse.offset(0, h, n)] = -static_cast<C>(INFINITY);
    }
  }
}

}  // namespace

void span_attention_forward(const SpanAttentionForward& params) {
  if (params.problem.dtype == DType::f64) {
    forward<double>(params);
  } else {
    forward<float>(params);
  }
}

}  // namespace glm::cpu::GLM_ISA
