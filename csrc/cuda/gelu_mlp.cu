// y = gelu(x w1^T + b1) w2^T + b2 on a GPU, and its gradients: matrix products whose epilogues do all that
// lies between them.
//
//   pre = x w1^T + b1, post = gelu(pre)      one product, both stored from its epilogue
//   y = post w2^T + b2
//   grad_pre = (grad_y w2) gelu'(pre)        one product; its epilogue also sums grad_b1 by row tiles, and
//                                            computes post again where forward did not keep it
//   grad_x = grad_pre w1,   grad_w1 = grad_pre^T x,   grad_w2 = grad_y^T post
//
// gelu_mlp_gelu, gelu_mlp_gelu_grad and gelu_mlp_sum_rows are the same as passes over memory, for where a library
// computes the products.
#include "cuda/gemm/gemm.cuh"
#include "cuda/kernels.h"
#include "cuda/passes.cuh"
#include "cuda/sum_parts.cuh"

namespace glm::cuda {
namespace {

// ---- gelu
// ----------------------------------------------------------------------------------------------------

// gelu(x) = x s with s = 1 / (1 + exp(-2 u)) and u the argument of tanh: one exponential and one reciprocal.
__device__ __forceinline__ float sigmoid_of_gelu(float x) {
  constexpr float kScale = static_cast<float>(-2.0 * kGeluTanhScale * 1.44269504088896340736);
  return reciprocal_fast(1.0f + exp2_fast(kScale * fmaf(static_cast<float>(kGeluTanhCubic) * x * x, x, x)));
}

__device__ __forceinline__ float gelu_fast(float x, Gelu kind) {
  return kind == Gelu::erf ? gelu(x, Gelu::erf) : x * sigmoid_of_gelu(x);
}

__device__ __forceinline__ float gelu_grad_fast(float x, Gelu kind) {
  if (kind == Gelu::erf) return gelu_grad(x, Gelu::erf);
  const float s = sigmoid_of_gelu(x);
  const float slope = static_cast<float>(2.0 * kGeluTanhScale) *
                      fmaf(static_cast<float>(3.0 * kGeluTanhCubic) * x, x, 1.0f);  // 2 u'
  return fmaf(x * slope, s * (1.0f - s), s);
}

// ---- epilogues
// -----------------------------------------------------------------------------------------------

// pre = C + bias and post = gelu(pre), [M, hidden]; either may be null.
template <class T>
struct StoreActivation {
  static constexpr bool kSums = false;
  T* pre;
  T* post;
  const T* bias;
  int64_t hidden;
  Gelu kind;
  bool whole;

  StoreActivation(void* pre, void* post, const void* bias, int64_t hidden, Gelu kind)
      : pre(static_cast<T*>(pre)),
        post(static_cast<T*>(post)),
        bias(static_cast<const T*>(bias)),
        hidden(hidden),
        kind(kind),
        whole(fours_are_aligned<T>(hidden, pre) && fours_are_aligned<T>(hidden, post) &&
              fours_are_aligned<T>(0, bias)) {}

  __device__ __forceinline__ void operator()(float (&v)[4], int64_t row, int64_t col, int count, int) const {
    if (bias != nullptr) {
      float b[4];
      load_four(b, bias + col, count, whole);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] += b[i];
    }
    // Backward will read pre as it is stored, so that is what is activated.
    if (pre != nullptr) store_four<T, true>(pre + row * hidden + col, v, count, whole);
    if (post == nullptr) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = gelu_fast(v[i], kind);
    store_four(post + row * hidden + col, v, count, whole);
  }
};

// grad_pre = C gelu'(pre), its sums over row tiles, and post = gelu(pre) where it is not null.
template <class T>
struct StoreGradPre {
  static constexpr bool kSums = true;
  const T* pre;
  T* grad_pre;
  T* post;
  float* sums;  // [row tiles, hidden], or null
  int64_t hidden;
  Gelu kind;
  bool whole;

  StoreGradPre(const void* pre, void* grad_pre, void* post, float* sums, int64_t hidden, Gelu kind)
      : pre(static_cast<const T*>(pre)),
        grad_pre(static_cast<T*>(grad_pre)),
        post(static_cast<T*>(post)),
        sums(sums),
        hidden(hidden),
        kind(kind),
        whole(fours_are_aligned<T>(hidden, pre) && fours_are_aligned<T>(hidden, grad_pre) &&
              fours_are_aligned<T>(hidden, post)) {}

  __device__ __forceinline__ void operator()(float (&v)[4], int64_t row, int64_t col, int count, int) const {
    const int64_t at = row * hidden + col;
    float p[4];
    load_four(p, pre + at, count, whole);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] *= gelu_grad_fast(p[i], kind);
    store_four(grad_pre + at, v, count, whole);
    if (post == nullptr) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) p[i] = gelu_fast(p[i], kind);
    store_four(post + at, p, count, whole);
  }
};

// ---- passes
// -------------------------------------------------------------------------------------------------

template <Gelu kKind>
struct Activation {
  __device__ __forceinline__ float operator()(float x) const { return gelu_fast(x, kKind); }
};

// As StoreGradPre, where C lies in memory.
template <class T, int kRun, Gelu kKind>
struct GradPre {
  const T* grad_post;
  const T* pre;
  T* grad_pre;
  T* post;  // or null
  int64_t hidden;

  static constexpr int kTensors = 2;
  struct Loaded {
    Run<T, kRun> grad, pre;
    int64_t at;
  };
  __device__ __forceinline__ Loaded load(int64_t row, int64_t col, bool inside) const {
    const int64_t at = row * hidden + col;
    return {load_run<kRun>(grad_post + at, inside), load_run<kRun>(pre + at, inside), at};
  }
  __device__ __forceinline__ void finish(const Loaded& loaded, bool inside, float (&values)[kRun]) const {
    float p[kRun];
    loaded.grad.widen_to(values);
    loaded.pre.widen_to(p);
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      values[k] *= gelu_grad_fast(p[k], kKind);
      p[k] = gelu_fast(p[k], kKind);
    }
    if (!inside) return;
    store_run(grad_pre + loaded.at, values);
    if (post != nullptr) store_run(post + loaded.at, p);
  }
};

template <class Function>
void visit_gelu(Gelu kind, const Function& function) {
  if (kind == Gelu::erf) return function(std::integral_constant<Gelu, Gelu::erf>{});
  function(std::integral_constant<Gelu, Gelu::tanh>{});
}

// ---- products
// ------------------------------------------------------------------------------------------------

GemmOperand rows_of(const Matrix& m) { return {m.data, m.row_stride, m.col_stride}; }
GemmOperand cols_of(const Matrix& m) { return {m.data, m.col_stride, m.row_stride}; }
GemmOperand rows_of(const void* data, int64_t width) { return {data, width, 1}; }
GemmOperand cols_of(const void* data, int64_t width) { return {data, 1, width}; }

// The workspace of the sums, which epilogues leave by row tiles (ops/gelu_mlp.h).
static_assert(GemmTraits<float>::kRows == kGeluMlpTileRows && GemmTraits<bf16>::kRows == kGeluMlpTileRows &&
              PassTraits::kTileRows == kGeluMlpTileRows);

template <class T>
void sum_tiles(const float* sums, int64_t rows, int64_t cols, void* out, cudaStream_t stream) {
  sum_parts<T>({sums, gelu_mlp_row_tiles(rows), cols, {out, nullptr}, cols}, stream);
}

template <class T>
void forward(const GeluMlpForward& p, cudaStream_t stream) {
  constexpr Layout kBy = Layout::by_depth;
  const auto& [dtype, kind, rows, width, hidden, width_out] = p.shape;
  void* post = p.post != nullptr ? p.post : p.workspace;
  if (p.y == nullptr) post = nullptr;
  gemm<T, kBy, kBy>({rows, hidden, width, rows_of(p.x), rows_of(p.w1)},
                    StoreActivation<T>(p.pre, post, p.b1, hidden, kind), stream);
  if (p.y == nullptr) return;
  gemm<T, kBy, kBy>({rows, width_out, hidden, rows_of(post, hidden), rows_of(p.w2)},
                    StoreResult<T>(p.y, width_out, p.b2), stream);
}

template <class T>
void backward(const GeluMlpBackward& p, cudaStream_t stream) {
  constexpr Layout kRow = Layout::by_row, kDepth = Layout::by_depth;
  const auto& [dtype, kind, rows, width, hidden, width_out] = p.shape;
  const GeluMlpGpuWorkspace layout(p.shape);
  auto* memory = static_cast<unsigned char*>(p.workspace);
  auto* sums = reinterpret_cast<float*>(memory);
  void* scratch = p.post == nullptr && p.grad_w2 != nullptr ? memory + layout.post : nullptr;
  const void* post = p.post != nullptr ? p.post : scratch;

  if (p.grad_x != nullptr || p.grad_w1 != nullptr || p.grad_b1 != nullptr) {
    gemm<T, kDepth, kRow>(
        {rows, hidden, width_out, rows_of(p.grad_y), cols_of(p.w2)},
        StoreGradPre<T>(p.pre, p.grad_pre, scratch, p.grad_b1 != nullptr ? sums : nullptr, hidden, kind),
        stream);
    if (p.grad_b1 != nullptr) sum_tiles<T>(sums, rows, hidden, p.grad_b1, stream);
  } else if (scratch != nullptr) {
    gelu_mlp_gelu({dtype, kind, rows, hidden, p.pre, scratch}, stream);
  }
  if (p.grad_x != nullptr)
    gemm<T, kDepth, kRow>({rows, width, hidden, rows_of(p.grad_pre, hidden), cols_of(p.w1)},
                          StoreResult<T>(p.grad_x, width), stream);
  if (p.grad_w1 != nullptr)
    gemm<T, kRow, kRow>({hidden, width, rows, cols_of(p.grad_pre, hidden), cols_of(p.x)},
                        StoreResult<T>(p.grad_w1, width), stream);
  if (p.grad_w2 != nullptr)
    gemm<T, kRow, kRow>({width_out, hidden, rows, cols_of(p.grad_y), cols_of(post, hidden)},
                        StoreResult<T>(p.grad_w2, hidden), stream);
  if (p.grad_b2 != nullptr) {  // the sums of grad_b1 have been read
    gelu_mlp_sum_rows({dtype, rows, width_out, p.grad_y, sums, p.grad_b2}, stream);
  }
}

}  // namespace

void gelu_mlp_forward(const GeluMlpForward& p, cudaStream_t stream) {
  visit_gpu_floating(p.shape.dtype, [&]<class T>(Type<T>) { forward<T>(p, stream); });
}

void gelu_mlp_backward(const GeluMlpBackward& p, cudaStream_t stream) {
  visit_gpu_floating(p.shape.dtype, [&]<class T>(Type<T>) { backward<T>(p, stream); });
}

void gelu_mlp_gelu(const GeluMlpGelu& p, cudaStream_t stream) {
  visit_gpu_floating(p.dtype, [&]<class T>(Type<T>) {
    visit_gelu(p.kind, [&](auto kind) {
      map<T>(p.pre, p.post, p.rows * p.hidden, Activation<kind.value>{}, stream);
    });
  });
}

void gelu_mlp_gelu_grad(const GeluMlpGeluGrad& p, cudaStream_t stream) {
  visit_gpu_floating(p.dtype, [&]<class T>(Type<T>) {
    auto* sums = static_cast<float*>(p.sums);
    visit_gelu(p.kind, [&](auto kind) {
      visit_bool(rows_are_aligned<T>(p.hidden, p.grad_post, p.pre, p.grad_pre, p.post), [&](auto whole) {
        constexpr int kRun = whole.value ? 16 / sizeof(T) : 1;
        const GradPre<T, kRun, kind.value> body = {static_cast<const T*>(p.grad_post),
                                                   static_cast<const T*>(p.pre), static_cast<T*>(p.grad_pre),
                                                   static_cast<T*>(p.post), p.hidden};
        columns<kRun>(p.rows, p.hidden, body, p.grad_bias != nullptr ? sums : nullptr, stream);
      });
    });
    if (p.grad_bias != nullptr) sum_tiles<T>(sums, p.rows, p.hidden, p.grad_bias, stream);
  });
}

void gelu_mlp_sum_rows(const GeluMlpSumRows& p, cudaStream_t stream) {
  visit_gpu_floating(p.dtype, [&]<class T>(Type<T>) {
    auto* sums = static_cast<float*>(p.sums);
    sum_columns<T>(p.rows, p.columns, p.values.data, p.values.row_stride, p.values.col_stride, sums, stream);
    sum_tiles<T>(sums, p.rows, p.columns, p.out, stream);
  });
}

}  // namespace glm::cuda
