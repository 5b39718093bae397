// The table of avx512bf16: avx512's, with kernels of its own where products of bf16 are most of the work
// (cpu/packed.h). They are compiled for bf16 alone; other dtypes go on to avx512's.
#if defined(GLM_HAVE_AVX512BF16)

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

namespace {

template <class P>
DType dtype(const P& p) {
  if constexpr (requires { p.shape; }) {
    return p.shape.dtype;
  } else {
    return p.dtype;
  }
}

// Sets one entry of the table: kOwn for bf16, what stood there for other dtypes.
template <auto kEntry, auto kOwn>
void replace(Kernels& table) {
  table.*kEntry = [](const auto& p) { (dtype(p) == DType::bf16 ? kOwn : avx512::kKernels.*kEntry)(p); };
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
    return table;
  }();
  return kTable;
}

}  // namespace avx512bf16
}  // namespace glm::cpu

#endif
