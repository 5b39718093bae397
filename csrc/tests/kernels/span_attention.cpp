#include "ops/span_attention.h"

#include "cpu/kernels.h"
#include "tests/kernels/tests.h"

namespace glm::test {
namespace {

constexpr int64_t kHeads = 4, kKeyHeads = 2, kHeadDim = 20;  // two query heads read one key head
constexpr double kScale = 0.25;

// Rows of all heads lie beside each other: [rows, heads, D]; a sequence of a dense batch begins `batch`
// later.
template <class T>
AttentionRows heads_of(std::vector<T>& x, int64_t heads, int64_t size, int64_t rows_per_sequence) {
  return {x.data(), rows_per_sequence * heads * size, size, heads * size};
}

// A batch: B sequences of S queries and T keys, or (cu_seqlens not empty) packed.
struct Batch {
  std::vector<int64_t> prefix_len, seq_len, start, cu_seqlens;
  int64_t rows, keys;
};

template <class T>
void check(Batch batch, const Dropout& dropout) {
  using C = Compute<T>;
  const int64_t B = static_cast<int64_t>(batch.prefix_len.size());
  const bool packed = !batch.cu_seqlens.empty();
  const int64_t rows = packed ? batch.rows : B * batch.rows, keys = packed ? batch.keys : B * batch.keys;
  const int64_t by_query = packed ? 0 : batch.rows, by_key = packed ? 0 : batch.keys;
  auto query = random<T>(rows * kHeads * kHeadDim, 1), grad_out = random<T>(rows * kHeads * kHeadDim, 4);
  auto key = random<T>(keys * kKeyHeads * kHeadDim, 2), value_in = random<T>(keys * kKeyHeads * kHeadDim, 3);
  auto grad_lse = random<C>(rows * kHeads, 5);
  auto out = unwritten<T>(rows * kHeads * kHeadDim), grad_query = out;
  auto lse = unwritten<C>(rows * kHeads);
  auto grad_key = unwritten<T>(keys * kKeyHeads * kHeadDim), grad_value = grad_key;

  const auto pointer = [](const std::vector<int64_t>& x) { return x.empty() ? nullptr : x.data(); };
  const SpanAttention problem = {
      .dtype = kDType<T>,
      .batch = B,
      .heads = kHeads,
      .kv_heads = kKeyHeads,
      .head_dim = kHeadDim,
      .rows = batch.rows,
      .keys = batch.keys,
      .prefix_len = batch.prefix_len.data(),
      .seq_len = pointer(batch.seq_len),
      .start = pointer(batch.start),
      .cu_seqlens = pointer(batch.cu_seqlens),
      .query = heads_of(query, kHeads, kHeadDim, by_query),
      .key = heads_of(key, kKeyHeads, kHeadDim, by_key),
      .value = heads_of(value_in, kKeyHeads, kHeadDim, by_key),
      .scale = kScale,
      .dropout = dropout,
      .threads = 2,
  };
  const AttentionRows out_rows = heads_of(out, kHeads, kHeadDim, by_query);
  const AttentionRows lse_rows = heads_of(lse, kHeads, 1, by_query);
  cpu::kernels().span_attention_forward({problem, out_rows, lse_rows});
  cpu::kernels().span_attention_backward({
      .problem = problem,
      .out = out_rows,
      .lse = lse_rows,
      .grad_out = heads_of(grad_out, kHeads, kHeadDim, by_query),
      .grad_lse = heads_of(grad_lse, kHeads, 1, by_query),
      .grad_query = heads_of(grad_query, kHeads, kHeadDim, by_query),
      .grad_key = heads_of(grad_key, kKeyHeads, kHeadDim, by_key),
      .grad_value = heads_of(grad_value, kKeyHeads, kHeadDim, by_key),
  });

  // Probabilities may be rounded to bf16: sizes of what dV sums of them. (The other sums are within the bounds.)
  const double unit = rounds_between_products<T>() ? 1.0 : 0.0;
  std::vector<double> by_q(query.size()), by_k(key.size()), by_v(key.size()), v_size(key.size());
  for (int64_t b = 0; b < B; ++b) {
    const SpanSequence sequence = problem.sequence(b);
    const int64_t first_row = packed ? sequence.first_row : b * batch.rows;
    const int64_t first_key = packed ? sequence.first_key : b * batch.keys;
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t i = 0; i < sequence.rows; ++i) {
        const int64_t q = ((first_row + i) * kHeads + h) * kHeadDim;
        const auto k = [&](int64_t j) { return ((first_key + j) * kKeyHeads + h / 2) * kHeadDim; };
        const int64_t begin = sequence.mask.begin, end = std::max(begin, sequence.mask.row_end(i));
        std::vector<double> score(static_cast<size_t>(end - begin)), kept(score.size()),
            grad_kept(score.size());
        double largest = -INFINITY, sum = 0, delta = 0;
        for (int64_t j = begin; j < end; ++j) {
          for (int64_t d = 0; d < kHeadDim; ++d)
            score[j - begin] += kScale * value(query[q + d]) * value(key[k(j) + d]);
          largest = std::max(largest, score[j - begin]);
        }
        for (const double s : score) sum += std::exp(s - largest);
        const double row_lse = end > begin ? largest + std::log(sum) : -INFINITY;
        std::vector<double> row(kHeadDim);
        for (int64_t j = begin; j < end; ++j) {
          const bool keep =
              !dropout.active() || attention_random(dropout.seed, b, h, i, j) < dropout.threshold();
          kept[j - begin] = keep ? dropout.scale() : 0.0;
          const double p = std::exp(score[j - begin] - row_lse);
          for (int64_t d = 0; d < kHeadDim; ++d) {
            row[d] += p * kept[j - begin] * value(value_in[k(j) + d]);
            grad_kept[j - begin] += value(grad_out[q + d]) * value(value_in[k(j) + d]);
            by_v[k(j) + d] += p * kept[j - begin] * value(grad_out[q + d]);
            v_size[k(j) + d] += unit * std::abs(p * kept[j - begin] * value(grad_out[q + d]));
          }
          delta += p * kept[j - begin] * grad_kept[j - begin];
        }
        for (int64_t j = begin; j < end; ++j) {
          const double p = std::exp(score[j - begin] - row_lse);
          const double grad_score =
              kScale * p *
              (kept[j - begin] * grad_kept[j - begin] - delta + grad_lse[(first_row + i) * kHeads + h]);
          for (int64_t d = 0; d < kHeadDim; ++d) {
            by_q[q + d] += grad_score * value(key[k(j) + d]);
            by_k[k(j) + d] += grad_score * value(query[q + d]);
          }
        }
        for (int64_t d = 0; d < kHeadDim; ++d) expect_close(out[q + d], row[d], kHeadDim, "out");
        const C got = lse[(first_row + i) * kHeads + h];
        if (end > begin) {
          expect_close(got, row_lse, kHeadDim, "lse");
        } else {
          expect(got == -INFINITY, "lse of a row that sees nothing");
        }
      }
    }
  }
  // Backward takes out as it was stored, for the term that all scores of a row share.
  for (size_t i = 0; i < by_q.size(); ++i)
    expect_close(grad_query[i], by_q[i], 8 * kHeadDim, "grad_query", 16.0);
  for (size_t i = 0; i < by_k.size(); ++i) {
    expect_close(grad_key[i], by_k[i], 8 * kHeadDim, "grad_key", 64.0);
    expect_close(grad_value[i], by_v[i], 8 * kHeadDim, "grad_value", v_size[i]);
  }
}

}  // namespace

void test_span_attention() {
  for_each_dtype([]<class T>(Type<T>) {
    for (const Dropout dropout : {Dropout{0.0, 0}, Dropout{0.3, 20260101}}) {
      check<T>({{0}, {}, {}, {}, 1, 1}, dropout);
      check<T>({{3, 0, 70, 5}, {70, 70, 70, 0}, {}, {}, 70, 70},
               dropout);                                          // the third is full, the last is empty
      check<T>({{3, 9}, {13, 19}, {2, 4}, {}, 19, 19}, dropout);  // padding on both sides
      check<T>({{3, 9}, {67, 40}, {}, {}, 3, 67}, dropout);       // decoding
      check<T>({{2, 5, 0}, {}, {}, {0, 17, 22, 90}, 90, 90}, dropout);  // packed
    }
  });
}

}  // namespace glm::test
