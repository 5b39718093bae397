// Cross-entropy of logits = hidden weight^T on a GPU, and its gradients in the same pass; no [N, V] exists.
//
//   ce_n = lse_n - (1 - e) z_{n, target} - e mean_v z_nv,      e the label smoothing, w_n the weight of row n
//   grad_z_nv = s w_n (softmax(z_n)_v - (1 - e) [v = target] - e / V),  s = 1, or 1 / sum(w) for the mean
//   grad_hidden = grad_z weight,     grad_weight = grad_z^T hidden
//
// How many rows count (w_n != 0) the host does not know, and must not ask. So a first kernel lists them, and
// everything after is launched for as many as there could be: blocks of rows past the end return at once. For
// each chunk of rows: a product leaves logits in float; a block a row turns them into the loss and grad_z,
// rounded to T, which the tensor cores take; a product adds to grad_weight; a product in four slices of the
// vocabulary gives grad_hidden, whose slices are added in order. Chunks follow each other on the stream, so
// that every sum has one order.
//
// In float16 a probability over the number of rows would have few bits left (the least number with all of them
// is 6e-5). So grad_z is kept without s, times a power of two that leaves the largest just inside of T, and
// the sums in float are multiplied with what makes up for both.
#include <algorithm>
#include <bit>
#include <limits>

#include "cuda/gemm/gemm.cuh"
#include "cuda/kernels.h"

namespace glm::cuda {
namespace {

struct ListTraits {
  static constexpr int kWarps = 32;
  static constexpr int kThreads = kWarps * kWarp;

  struct Shared {
    int32_t counts[2][kWarps];
    float sums[kThreads];
    float largest[kThreads];
  };
};

// The factors at Work::plan.sums.
enum Factor : int { kOfLoss, kOfGradLogits, kOfGradients };

// |grad_z| < 2 when it is taken by weights below 2, and stays below the 65504 of float16.
template <class T>
inline constexpr float kGain = std::is_same_v<T, f16> ? 0x1p14f : 1.0f;

struct RowTraits {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarp;
};

// One block an SM: the rows that are worked on at a time, and their gradients, stay in L2 until their second
// reading. Four 16-byte loads a lane are 64 KB in flight.
struct SoftmaxTraits {
  static constexpr int kWarps = 32;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kInFlight = 4;

  struct Shared {
    float slots[kWarps][3];
  };
};

// The op with its workspace, as the kernels see it.
struct Work {
  LinearCrossEntropy op;
  LinearCrossEntropyGpuPlan plan;
  float smoothing, gain;

  template <class T>
  GLM_HD T* at(int64_t bytes) const {
    return reinterpret_cast<T*>(static_cast<unsigned char*>(op.workspace) + bytes);
  }
  __device__ __forceinline__ int32_t count() const { return load_global(at<int32_t>(plan.count)); }
  GLM_HD const float* factor(Factor which) const { return at<float>(plan.sums) + which; }
  __device__ __forceinline__ float row_weight(int64_t n) const {
    return load_global(static_cast<const float*>(op.row_weight) + n);
  }
};

// One block: the rows that count, in their order; the sum of their weights, always in the same order; and the
// largest of them.
__global__ void __launch_bounds__(ListTraits::kThreads) list_kernel(Work w) {
  auto& shared = shared_memory<ListTraits::Shared>();
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  int32_t listed = 0;
  float sum = 0.0f, largest = 0.0f;
  int turn = 0;
  for (int64_t n0 = 0; n0 < w.op.rows; n0 += ListTraits::kThreads, turn ^= 1) {
    const int64_t n = n0 + thread;
    const float weight = n < w.op.rows ? w.row_weight(n) : 0.0f;
    sum += weight;
    largest = fmaxf(largest, fabsf(weight));
    const uint32_t votes = __ballot_sync(kAllLanes, weight != 0.0f);
    if (lane == 0) store_shared(&shared.counts[turn][warp], count_bits(votes));
    __syncthreads();
    int32_t before = 0, all = 0;
#pragma unroll
    for (int other = 0; other < ListTraits::kWarps; ++other) {
      const int32_t count = load_shared(&shared.counts[turn][other]);
      before += other < warp ? count : 0;
      all += count;
    }
    if (weight != 0.0f)
      store_global(w.at<int32_t>(w.plan.places) + listed + before + count_bits(votes & ((1u << lane) - 1u)),
                   static_cast<int32_t>(n));
    listed += all;
  }
  store_shared(&shared.sums[thread], sum);
  store_shared(&shared.largest[thread], largest);
  for (int half = ListTraits::kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) {
      sum += load_shared(&shared.sums[thread + half]);
      largest = fmaxf(largest, load_shared(&shared.largest[thread + half]));
      store_shared(&shared.sums[thread], sum);
      store_shared(&shared.largest[thread], largest);
    }
  }
  if (thread > 0) return;
  store_global(w.at<int32_t>(w.plan.count), listed);
  const float scale = w.op.reduction == Reduction::mean && sum != 0.0f ? 1.0f / sum : 1.0f;
  // The power of two below the largest weight; 1 where there is none.
  const float power = std::bit_cast<float>(std::bit_cast<uint32_t>(largest) & 0x7f800000u);
  const float unit = 0.0f < power && power < std::numeric_limits<float>::infinity() ? power : 1.0f;
  float* factors = w.at<float>(w.plan.sums);
  store_global(factors + kOfLoss, scale);
  store_global(factors + kOfGradLogits, w.gain / unit);
  store_global(factors + kOfGradients, scale * (unit / w.gain));
}

// A warp a row n: zeros where row n does not count; and hidden of the n-th row that counts.
template <class T>
__global__ void __launch_bounds__(RowTraits::kThreads) gather_kernel(Work w) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * RowTraits::kWarps + threadIdx.x / kWarp;
  if (n >= w.op.rows) return;
  const int64_t width = w.op.width;
  if (w.row_weight(n) == 0.0f) {
    if (w.op.reduction == Reduction::none && lane == 0)
      store_global(static_cast<float*>(w.op.loss) + n, 0.0f);
    if (w.op.grad_hidden != nullptr)
      for (int64_t e = lane; e < width; e += kWarp)
        store_global(static_cast<float*>(w.op.grad_hidden) + n * width + e, 0.0f);
  }
  if (n >= w.count()) return;
  const T* from = static_cast<const T*>(w.op.hidden) + load_global(w.at<int32_t>(w.plan.places) + n) * width;
  T* to = w.at<T>(w.plan.hidden) + n * width;
#pragma unroll 4
  for (int64_t e = lane; e < width; e += kWarp) store_global(to + e, load_global(from + e));
}

// A running maximum, the sum of exponentials (base 2) relative to it, and the sum of logits.
struct Softmax {
  float top = -std::numeric_limits<float>::infinity(), total = 0.0f, sum = 0.0f;

  __device__ __forceinline__ void add(float other_top, float other_total, float other_sum) {
    const float high = fmaxf(top, other_top);
    const float base = high == -std::numeric_limits<float>::infinity() ? 0.0f : high;
    total =
        fmaf(other_total, exp2_fast((other_top - base) * kLog2E), total * exp2_fast((top - base) * kLog2E));
    top = high;
    sum += other_sum;
  }
  static constexpr float kLog2E = 1.44269504f;
};

// A block a row of the chunk: logits become the loss and, where it is wanted, grad_z.
template <class T>
__global__ void __launch_bounds__(SoftmaxTraits::kThreads)
    softmax_kernel(Work w, int64_t first, bool wants_gradient) {
  constexpr int kInFlight = SoftmaxTraits::kInFlight, kStep = SoftmaxTraits::kThreads * 4;
  auto& shared = shared_memory<SoftmaxTraits::Shared>();
  const int64_t i = first + blockIdx.x, vocab = w.op.vocab;
  if (i >= w.count()) return;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const float* logits = w.at<float>(w.plan.logits) + blockIdx.x * w.plan.line;
  const auto load = [&](Pack<float, 4>(&z)[kInFlight], int64_t v, int64_t end) {
#pragma unroll
    for (int j = 0; j < kInFlight; ++j)
      if (v + j * kStep < end)
        z[j] = load_global(reinterpret_cast<const Pack<float, 4>*>(logits + v + j * kStep));
  };

  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  Softmax state;
  bool is_nan = false;
  for (int64_t v = thread * 4; v < vocab; v += kInFlight * kStep) {
    Pack<float, 4> z[kInFlight];
    load(z, v, vocab);
    const auto inside = [&](int j, int k) { return v + j * kStep + k < vocab; };
    float top = state.top;
#pragma unroll
    for (int j = 0; j < kInFlight; ++j)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (inside(j, k)) top = fmaxf(top, z[j].value[k]);
    float total = 0.0f, sum = 0.0f;
    const float base = top == kLowest ? 0.0f : top;
#pragma unroll
    for (int j = 0; j < kInFlight; ++j)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (!inside(j, k)) continue;
        is_nan |= z[j].value[k] != z[j].value[k];
        total += exp2_fast((z[j].value[k] - base) * Softmax::kLog2E);
        sum += z[j].value[k];
      }
    state.add(top, total, sum);
  }
  const auto over_lanes = [](Softmax& all) {
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2)
      all.add(__shfl_xor_sync(kAllLanes, all.top, mask), __shfl_xor_sync(kAllLanes, all.total, mask),
              __shfl_xor_sync(kAllLanes, all.sum, mask));
  };
  over_lanes(state);
  // fmax passes a NaN over, the sums do not: a row with one is NaN whole.
  if (__any_sync(kAllLanes, is_nan)) state.total = std::numeric_limits<float>::quiet_NaN();
  if (lane == 0) {
    store_shared(&shared.slots[warp][0], state.top);
    store_shared(&shared.slots[warp][1], state.total);
    store_shared(&shared.slots[warp][2], state.sum);
  }
  __syncthreads();
  static_assert(SoftmaxTraits::kWarps == kWarp);
  Softmax row = {load_shared(&shared.slots[lane][0]), load_shared(&shared.slots[lane][1]),
                 load_shared(&shared.slots[lane][2])};
  over_lanes(row);
  row = {__shfl_sync(kAllLanes, row.top, 0), __shfl_sync(kAllLanes, row.total, 0),
         __shfl_sync(kAllLanes, row.sum, 0)};  // the same bits in all lanes

  const int64_t n = load_global(w.at<int32_t>(w.plan.places) + i);
  const float weight = w.row_weight(n);
  const int64_t target = load_global(w.op.targets + n);
  const bool inside = 0 <= target && target < vocab;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  if (thread == 0) {
    const float lse = row.top + logf(row.total);
    const float at_target = inside ? load_global(logits + target) : nan;
    const float mean = row.sum / static_cast<float>(vocab);
    // Differences first: large logits cancel before they are rounded again.
    const float loss = weight * ((1.0f - w.smoothing) * (lse - at_target) +
                                 (w.smoothing > 0.0f ? w.smoothing * (lse - mean) : 0.0f));
    store_global(w.at<float>(w.plan.losses) + i, loss);
    if (w.op.reduction == Reduction::none) store_global(static_cast<float*>(w.op.loss) + n, loss);
  }
  if (!wants_gradient) return;
  __syncthreads();  // in float32 the gradient takes the place of the logits, the target's too
  T* grad = w.at<T>(w.plan.grad_logits) + blockIdx.x * w.plan.line;
  const float factor = inside ? weight * load_global(w.factor(kOfGradLogits)) : nan;
  const float inverse = factor / row.total, even = factor * w.smoothing / static_cast<float>(vocab);
  for (int64_t v0 = thread * 4; v0 < w.plan.line; v0 += kInFlight * kStep) {
    Pack<float, 4> loaded[kInFlight];
    load(loaded, v0, w.plan.line);
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int64_t v = v0 + j * kStep;
      if (v >= w.plan.line) break;
      const Pack<float, 4>& z = loaded[j];
      Pack<T, 4> out;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float g = fmaf(inverse, exp2_fast((z.value[k] - row.top) * Softmax::kLog2E), -even);
        if (v + k == target) g -= factor * (1.0f - w.smoothing);
        out.value[k] = narrow<T>(v + k < vocab ? g : 0.0f);  // a product runs over what completes the line
      }
      store_global(reinterpret_cast<Pack<T, 4>*>(grad + v), out);
    }
  }
}

// grad_hidden of the rows of a chunk: the slices in order, to where the row stands.
__global__ void __launch_bounds__(RowTraits::kThreads) scatter_kernel(Work w, int64_t first) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t r = static_cast<int64_t>(blockIdx.x) * RowTraits::kWarps + threadIdx.x / kWarp;
  if (r >= w.plan.chunk_rows || first + r >= w.count()) return;
  const int64_t width = w.op.width, n = load_global(w.at<int32_t>(w.plan.places) + first + r);
  const float* slices = w.at<float>(w.plan.grad_hidden) + r * width;
  const float factor = load_global(w.factor(kOfGradients));
  for (int64_t e = lane; e < width; e += kWarp) {
    float sum = 0.0f;
#pragma unroll
    for (int slice = 0; slice < LinearCrossEntropyGpuPlan::kSlices; ++slice)
      sum += load_global(slices + slice * w.plan.chunk_rows * width + e);
    store_global(static_cast<float*>(w.op.grad_hidden) + n * width + e, sum * factor);
  }
}

// One block: the sum of all losses, or their mean.
__global__ void __launch_bounds__(ListTraits::kThreads) total_kernel(Work w) {
  auto& shared = shared_memory<ListTraits::Shared>();
  const int thread = static_cast<int>(threadIdx.x), count = w.count();
  float sum = 0.0f;
  for (int i = thread; i < count; i += ListTraits::kThreads)
    sum += load_global(w.at<float>(w.plan.losses) + i);
  store_shared(&shared.sums[thread], sum);
  for (int half = ListTraits::kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) {
      sum += load_shared(&shared.sums[thread + half]);
      store_shared(&shared.sums[thread], sum);
    }
  }
  if (thread == 0) store_global(static_cast<float*>(w.op.loss), sum * load_global(w.factor(kOfLoss)));
}

template <class T>
void chunk(const Work& w, int64_t first, cudaStream_t stream) {
  constexpr Layout kDepth = Layout::by_depth, kRow = Layout::by_row;
  const LinearCrossEntropy& op = w.op;
  const LinearCrossEntropyGpuPlan& plan = w.plan;
  auto* memory = static_cast<unsigned char*>(op.workspace);
  const auto* count = reinterpret_cast<const int32_t*>(memory + plan.count);
  const int64_t rows = std::min(plan.chunk_rows, op.rows - first);
  const T* hidden = reinterpret_cast<const T*>(memory + plan.hidden) + first * op.width;
  const bool wants_gradient = op.grad_hidden != nullptr || op.grad_weight != nullptr;
  void* grad = memory + plan.grad_logits;

  gemm<T, kDepth, kDepth>(
      {rows, op.vocab, op.width, {hidden, op.width, 1}, {op.weight, op.width, 1}, count, first},
      StoreResult<float>(memory + plan.logits, plan.line), stream);
  if (rows > 0)
    launch(softmax_kernel<T>, dim3{static_cast<unsigned>(rows), 1, 1}, dim3{SoftmaxTraits::kThreads, 1, 1},
           sizeof(SoftmaxTraits::Shared), stream, w, first, wants_gradient);
  if (op.grad_weight != nullptr) {
    StoreResult<float> result(op.grad_weight, op.width);
    result.adds = first > 0;
    result.factor = w.factor(kOfGradients);
    gemm<T, kRow, kRow>(
        {op.vocab, op.width, rows, {grad, 1, plan.line, true}, {hidden, 1, op.width}, count, first, true},
        result, stream);
  }
  if (op.grad_hidden != nullptr && rows > 0) {
    StoreResult<float> result(memory + plan.grad_hidden, op.width);
    result.slice_size = plan.chunk_rows * op.width;
    gemm<T, kDepth, kRow>({rows,
                           op.width,
                           op.vocab,
                           {grad, plan.line, 1, true},
                           {op.weight, 1, op.width},
                           count,
                           first,
                           false,
                           LinearCrossEntropyGpuPlan::kSlices},
                          result, stream);
    launch(scatter_kernel, dim3{blocks_for(rows, RowTraits::kWarps), 1, 1}, dim3{RowTraits::kThreads, 1, 1},
           0, stream, w, first);
  }
}

}  // namespace

void linear_cross_entropy(const LinearCrossEntropy& p, cudaStream_t stream) {
  GLM_CHECK(p.rows < (int64_t{1} << 31), "targets: expected fewer than 2^31 on a GPU, got ", p.rows);
  visit_gpu_floating(p.dtype, [&]<class T>(Type<T>) {
    const Work w = {p, LinearCrossEntropyGpuPlan(p.rows, p.width, p.vocab, sizeof(T)),
                    static_cast<float>(p.label_smoothing), kGain<T>};
    const dim3 block{ListTraits::kThreads, 1, 1};
    launch(list_kernel, dim3{1, 1, 1}, block, sizeof(ListTraits::Shared), stream, w);
    if (p.rows > 0)
      launch(gather_kernel<T>, dim3{blocks_for(p.rows, RowTraits::kWarps), 1, 1},
             dim3{RowTraits::kThreads, 1, 1}, 0, stream, w);
    int64_t first = 0;
    do {  // once for no rows at all: the gradient of the weight is zero
      chunk<T>(w, first, stream);
      first += w.plan.chunk_rows;
    } while (first < p.rows);
    if (p.reduction != Reduction::none)
      launch(total_kernel, dim3{1, 1, 1}, block, sizeof(ListTraits::Shared), stream, w);
  });
}

}  // namespace glm::cuda
