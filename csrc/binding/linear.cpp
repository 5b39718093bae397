#include "ops/linear.h"

#include "binding/register.h"
#include "binding/target.h"
#include "binding/view.h"
#include "cpu/kernels.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace glm {
namespace {

void forward(View x, View weight, View bias, View y, Target target) {
  run<void, LinearForward>(target, cpu::kernels().linear_forward, nullptr,
                           {
                               .dtype = x.dtype,
                               .rows = x.shape[0],
                               .width = x.shape[1],
                               .width_out = weight.shape[0],
                               .x = x.matrix(),
                               .weight = weight.matrix(),
                               .bias = bias.data,
                               .y = y.data,
                               .threads = target.threads,
                           });
}

void backward(View grad_y, View x, View weight, View sums, View grad_x, View grad_weight, View grad_bias,
              Target target) {
  run<void, LinearBackward>(target, cpu::kernels().linear_backward, nullptr,
                            {
                                .dtype = x.dtype,
                                .rows = x.shape[0],
                                .width = x.shape[1],
                                .width_out = weight.shape[0],
                                .grad_y = grad_y.matrix(),
                                .x = x.matrix(),
                                .weight = weight.matrix(),
                                .sums = sums.data,
                                .grad_x = grad_x.data,
                                .grad_weight = grad_weight.data,
                                .grad_bias = grad_bias.data,
                                .threads = target.threads,
                            });
}

}  // namespace

void register_linear(py::module_& m) {
  m.def("linear_forward", &forward, "x"_a, "weight"_a, "bias"_a, "y"_a, "target"_a);
  m.def("linear_backward", &backward, "grad_y"_a, "x"_a, "weight"_a, "sums"_a, "grad_x"_a, "grad_weight"_a,
        "grad_bias"_a, "target"_a);
  m.def("sum_groups", &sum_groups, "rows"_a,
        "How many partial sums a bias gradient over `rows` rows is taken in.");
}

}  // namespace glm
