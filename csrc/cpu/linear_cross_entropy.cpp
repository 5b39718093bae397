// Linear + cross-entropy. For each chunk of the rows that count, R of them:
//
//   logits [R, V] = rows W^T  ->  loss, and in place their gradient  ->  grad_W += logits^T rows,  grad_rows = logits W
//
// three products in all. With z a row's logits, m their maximum, s = sum_v exp(z_v - m), and c the row's weight in
// the loss (derivation in docs/math.md):
//   loss     = c (log s + (1 - e)(m - z_target) + e (m - mean(z)))
//   dloss/dz = c (exp(z - m) / s - (1 - e) onehot(target) - e / V)
#include "ops/linear_cross_entropy.h"

#include <limits>

#include "core/dispatch.h"
#include "cpu/declarations.h"
#include "cpu/gemm.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace glm::cpu::GLM_ISA {
namespace {

constexpr int64_t kMaxRows = kLinearCrossEntropyMaxRows;
constexpr int64_t kVocabPart = 2048;

// The rows of one chunk: where they are, what they count, what they lose.
template <class C>
struct Chunk {
  int64_t count = 0;
  int64_t row[kMaxRows];
  C weight[kMaxRows];
  C loss[kMaxRows];
};

// Sums of body(v, sum) over the vectors of [0, size). The running sum is put by every 32 vectors, so that it never
// grows far beyond what is added to it: the error is that of sqrt(V) terms.
template <class C, class Body>
GLM_INLINE C sum_blocks(int64_t size, const Body& body) {
  constexpr int64_t kBlock = 32 * kLanes<C>;
  Vec<C> total = {};
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    Vec<C> sum = {};
    for (int64_t v = begin; v < std::min(begin + kBlock, size); v += kLanes<C>) sum += body(v);
    total += sum;
  }
  return reduce_add(total);
}

// The loss of one row of logits z, which become their gradient where `gradient` says so. z is `padded` long, whole
// vectors: what follows V is made minus infinity, which no maximum and no exponential sees.
template <class C>
C row_loss(C* z, int64_t vocab, int64_t padded, int64_t target, C weight, C smoothing, bool gradient) {
  const C z_target = z[target];
  C mean = 0;
  if (smoothing != C(0)) {
    std::fill(z + vocab, z + padded, C(0));
    mean = sum_blocks<C>(padded, [&](int64_t v) { return load(z + v); }) / static_cast<C>(vocab);
  }
  std::fill(z + vocab, z + padded, -std::numeric_limits<C>::infinity());

  Vec<C> largest = load(z);
  for (int64_t v = kLanes<C>; v < padded; v += kLanes<C>) largest = max(largest, load(z + v));
  const C m = reduce_max(largest);
  const C s = sum_blocks<C>(padded, [&](int64_t v) {
    const Vec<C> exponential = exp2((load(z + v) - m) * static_cast<C>(kLog2E));
    if (gradient) store(z + v, exponential);
    return exponential;
  });
  if (gradient) {
    const C scale = weight / s, shift = weight * smoothing / static_cast<C>(vocab);
    for (int64_t v = 0; v < padded; v += kLanes<C>) store(z + v, load(z + v) * scale - shift);
    z[target] -= weight * (C(1) - smoothing);
  }
  C loss = std::log(s) + (C(1) - smoothing) * (m - z_target);
  if (smoothing != C(0)) loss += smoothing * (m - mean);
  return weight * loss;
}

template <class T>
class Run {
  using C = Compute<T>;

 public:
  explicit Run(const LinearCrossEntropy& p)
      : p_(p),
        chunk_rows_(linear_cross_entropy_chunk_rows(p.rows, p.vocab)),
        stride_(linear_cross_entropy_stride(p.vocab)),
        logits_(static_cast<C*>(p.workspace)),
        rows_(logits_ + chunk_rows_ * stride_) {}

  void operator()() {
    const C scale = static_cast<C>(1.0 / normaliser());
    double sum = 0.0;
    bool first = true;
    for (int64_t next = 0; next < p_.rows;) {
      Chunk<C> chunk;
      next = gather(next, scale, chunk);
      if (chunk.count == 0) break;
      forward(chunk);
      for (int64_t i = 0; i < chunk.count; ++i) sum += chunk.loss[i];
      if (p_.grad_weight) add_weight_gradient(chunk, first);
      if (p_.grad_hidden) write_hidden_gradient(chunk);
      first = false;
    }
    if (p_.reduction != Reduction::none) *static_cast<C*>(p_.loss) = static_cast<C>(sum);
    if (p_.grad_weight && first) std::fill_n(static_cast<C*>(p_.grad_weight), p_.vocab * p_.width, C(0));
  }

 private:
  double normaliser() const {
    if (p_.reduction != Reduction::mean) return 1.0;
    double sum = 0.0;
    for (int64_t n = 0; n < p_.rows; ++n) sum += static_cast<const C*>(p_.row_weight)[n];
    return sum == 0.0 ? 1.0 : sum;
  }

  // The next rows that count, from row n on, widened side by side; gives those that do not their zeros. Returns the
  // row after the last one taken.
  int64_t gather(int64_t n, C scale, Chunk<C>& chunk) {
    for (; n < p_.rows && chunk.count < chunk_rows_; ++n) {
      const C weight = static_cast<const C*>(p_.row_weight)[n];
      if (weight == C(0)) {
        if (p_.grad_hidden) std::fill_n(grad_hidden(n), p_.width, C(0));
        if (p_.reduction == Reduction::none) static_cast<C*>(p_.loss)[n] = C(0);
        continue;
      }
      const T* from = static_cast<const T*>(p_.hidden) + n * p_.width;
      C* to = rows_ + chunk.count * p_.width;
      for (int64_t e = 0; e < p_.width; e += kLanes<C>) {
        const int count = static_cast<int>(std::min<int64_t>(kLanes<C>, p_.width - e));
        store_as_some(to + e, load_as_some(from + e, count), count);
      }
      chunk.row[chunk.count] = n;
      chunk.weight[chunk.count++] = weight * scale;
    }
    return n;
  }

  void forward(Chunk<C>& chunk) const {
    gemm<C>(chunk.count, p_.vocab, p_.width, Operand<C>{rows_, p_.width, 1}, Operand<T>{weight(), p_.width, 1},
            Store<C>{logits_, stride_}, p_.threads);
    const bool gradient = p_.grad_hidden || p_.grad_weight;
    const int64_t padded = ceil_div(p_.vocab, kLanes<C>) * kLanes<C>;
    parallel_for(chunk.count, p_.threads, [&](int64_t i) {
      chunk.loss[i] = row_loss(logits_ + i * stride_, p_.vocab, padded, p_.targets[chunk.row[i]], chunk.weight[i],
                               static_cast<C>(p_.label_smoothing), gradient);
      if (p_.reduction == Reduction::none) static_cast<C*>(p_.loss)[chunk.row[i]] = chunk.loss[i];
    });
  }

  // The first chunk writes: no pass of zeros comes before it.
  void add_weight_gradient(const Chunk<C>& chunk, bool first) const {
    gemm<C>(p_.vocab, p_.width, chunk.count, Operand<C>{logits_, 1, stride_}, Operand<C>{rows_, 1, p_.width},
            Store<C>{static_cast<C*>(p_.grad_weight), p_.width, nullptr, !first}, p_.threads);
  }

  // Through rows_, which nothing needs any more. The vocabulary is taken in parts: in one chain of V sums the many
  // small probabilities would be lost against what is already there.
  void write_hidden_gradient(const Chunk<C>& chunk) const {
    for (int64_t v = 0; v < p_.vocab; v += kVocabPart)
      gemm<C>(chunk.count, p_.width, std::min(kVocabPart, p_.vocab - v), Operand<C>{logits_ + v, stride_, 1},
              Operand<T>{weight() + v * p_.width, 1, p_.width}, Store<C>{rows_, p_.width, nullptr, v > 0},
              p_.threads);
    for (int64_t i = 0; i < chunk.count; ++i)
      std::copy_n(rows_ + i * p_.width, p_.width, grad_hidden(chunk.row[i]));
  }

  const T* weight() const { return static_cast<const T*>(p_.weight); }
  C* grad_hidden(int64_t n) const { return static_cast<C*>(p_.grad_hidden) + n * p_.width; }

  const LinearCrossEntropy& p_;
  const int64_t chunk_rows_, stride_;
  C* const logits_;  // [R, V], rows stride_ apart
  C* const rows_;    // [R, E]
};

}  // namespace

void linear_cross_entropy(const LinearCrossEntropy& p) {
  visit_floating(p.dtype, [&]<class T>(Type<T>) { Run<T>{p}(); });
}

}  // namespace glm::cpu::GLM_ISA
