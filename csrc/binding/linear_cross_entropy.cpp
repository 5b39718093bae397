#include "ops/linear_cross_entropy.h"

#include "binding/register.h"
#include "binding/target.h"
#include "binding/view.h"
#include "cpu/kernels.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace glm {
namespace {

void cross_entropy(View hidden, View weight, View targets, View row_weight, View loss, View grad_hidden,
                   View grad_weight, View workspace, double label_smoothing, int reduction, Target target) {
  run(target, cpu::kernels().linear_cross_entropy, cuda::kernels().linear_cross_entropy,
      {
          .dtype = hidden.dtype,
          .rows = targets.numel(),
          .width = weight.shape[1],
          .vocab = weight.shape[0],
          .hidden = hidden.data,
          .weight = weight.data,
          .targets = static_cast<const int64_t*>(targets.data),
          .row_weight = row_weight.data,
          .label_smoothing = label_smoothing,
          .reduction = static_cast<Reduction>(reduction),
          .loss = loss.data,
          .grad_hidden = grad_hidden.data,
          .grad_weight = grad_weight.data,
          .workspace = workspace.data,
          .threads = target.threads,
      });
}

// In numbers of the compute type.
int64_t workspace_size(int64_t rows, int64_t width, int64_t vocab, int element_size, Target target) {
  if (target.gpu) return LinearCrossEntropyGpuPlan(rows, width, vocab, element_size).size / 4;
  return LinearCrossEntropyPlan(rows, width, vocab).workspace();
}

}  // namespace

void register_linear_cross_entropy(py::module_& m) {
  m.def("linear_cross_entropy", &cross_entropy, "hidden"_a, "weight"_a, "targets"_a, "row_weight"_a, "loss"_a,
        "grad_hidden"_a, "grad_weight"_a, "workspace"_a, "label_smoothing"_a, "reduction"_a, "target"_a);
  m.def("linear_cross_entropy_workspace", &workspace_size, "rows"_a, "width"_a, "vocab"_a, "element_size"_a,
        "target"_a);
}

}  // namespace glm
