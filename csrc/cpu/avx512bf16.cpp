// The table of avx512bf16: avx512's, with kernels of its own where products of bf16 are most of the work
// (cpu/packed.h). They are compiled for bf16 alone; other dtypes go on to avx512's.
#if defined(GLM_HAVE_AVX512BF16)

#include "cpu/attention/layout.h"
#include "cpu/kernels.h"

namespace glm::cpu {

namespace avx512 {
extern const Kernels kKernels;
}

namespace avx512bf16 {

void gelu_mlp_forward(const GeluMlpForward&);
void gelu_mlp_backward(const GeluMlpBackward&);
void linear_forward(const LinearForward&);
void linear_backward(const LinearBackward&);
void linear_cross_entropy(const LinearCrossEntropy&);
void span_attention_forward(const SpanAttentionForward&);
void span_attention_backward(const SpanAttentionBackward&);

namespace {

// Whether this set has a kernel for it. Decoding waits for memory, whatever it multiplies.
template <class P>
bool has_own(const P& p) {
  if constexpr (requires { p.problem; }) {
    return p.problem.dtype == DType::bf16 && !(std::is_same_v<P, SpanAttentionForward> && decodes(p.problem));
  } else if constexpr (requires { p.shape; }) {
    return p.shape.dtype == DType::bf16;
  } else {
    return p.dtype == DType::bf16;
  }
}

// Sets one entry of the table: kOwn for what this set has, what stood there for the rest.
template <auto kEntry, auto kOwn>
void replace(Kernels& table) {
  table.*kEntry = [](const auto& p) { (has_own(p) ? kOwn : avx512::kKernels.*kEntry)(p); };
}

}  // namespace

const Kernels& kernels() {
  static const Kernels kTable = [] {
    Kernels table = avx512::kKernels;
    table.isa = "avx512bf16";
    replace<&Kernels::gelu_mlp_forward, gelu_mlp_forward>(table);
    replace<&Kernels::gelu_mlp_backward, gelu_mlp_backward>(table);
    replace<&Kernels::linear_forward, linear_forward>(table);
    replace<&Kernels::linear_backward, linear_backward>(table);
    replace<&Kernels::linear_cross_entropy, linear_cross_entropy>(table);
    replace<&Kernels::span_attention_forward, span_attention_forward>(table);
    replace<&Kernels::span_attention_backward, span_attention_backward>(table);
    return table;
  }();
  return kTable;
}

}  // namespace avx512bf16
}  // namespace glm::cpu

#endif
