#include "ops/linear_cross_entropy.h"

#include "binding/register.h"
#include "binding/view.h"
#include "cpu/kernels.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace glm {
namespace {

void run(View hidden, View weight, View targets, View row_weight, View loss, View grad_hidden,
         View grad_weight, View workspace, double label_smoothing, int reduction, int threads) {
  const py::gil_scoped_release release;
  cpu::kernels().linear_cross_entropy({
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
      .threads = threads,
  });
}

}  // namespace

void register_linear_cross_entropy(py::module_& m) {
  m.def("linear_cross_entropy", &run, "hidden"_a, "weight"_a, "targets"_a, "row_weight"_a, "loss"_a,
        "grad_hidden"_a, "grad_weight"_a, "workspace"_a, "label_smoothing"_a, "reduction"_a, "threads"_a);
  m.def(
      "linear_cross_entropy_workspace",
      [](int64_t rows, int64_t width, int64_t vocab) {
        return LinearCrossEntropyPlan(rows, width, vocab).workspace();
      },
      "rows"_a, "width"_a, "vocab"_a);
}

}  // namespace glm
