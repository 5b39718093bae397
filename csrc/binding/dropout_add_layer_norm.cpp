#include "ops/dropout_add_layer_norm.h"

#include "binding/register.h"
#include "binding/target.h"
#include "binding/view.h"
#include "cpu/kernels.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace glm {
namespace {

void forward(View x, View residual, View weight, View bias, View normed, View new_residual, View mean,
             View rstd, double eps, double dropout_p, uint64_t seed, Target target) {
  run(target, cpu::kernels().dropout_add_layer_norm_forward, cuda::kernels().dropout_add_layer_norm_forward,
      {
          .dtype = x.dtype,
          .rows = mean.numel(),
          .width = weight.numel(),
          .x = x.data,
          .residual = residual.data,
          .weight = weight.data,
          .bias = bias.data,
          .normed = normed.data,
          .new_residual = new_residual.data,
          .mean = mean.data,
          .rstd = rstd.data,
          .eps = eps,
          .dropout = {dropout_p, seed},
          .threads = target.threads,
      });
}

void backward(View grad_normed, View grad_new_residual, View new_residual, View weight, View mean, View rstd,
              View grad_x, View grad_residual, View grad_weight, View grad_bias, View workspace,
              double dropout_p, uint64_t seed, Target target) {
  run(target, cpu::kernels().dropout_add_layer_norm_backward, cuda::kernels().dropout_add_layer_norm_backward,
      {
          .dtype = grad_normed.dtype,
          .rows = mean.numel(),
          .width = weight.numel(),
          .grad_normed = grad_normed.data,
          .grad_new_residual = grad_new_residual.data,
          .new_residual = new_residual.data,
          .weight = weight.data,
          .mean = mean.data,
          .rstd = rstd.data,
          .grad_x = grad_x.data,
          .grad_residual = grad_residual.data,
          .grad_weight = grad_weight.data,
          .grad_bias = grad_bias.data,
          .workspace = workspace.data,
          .dropout = {dropout_p, seed},
          .threads = target.threads,
      });
}

}  // namespace

void register_dropout_add_layer_norm(py::module_& m) {
  m.def("dropout_add_layer_norm_forward", &forward, "x"_a, "residual"_a, "weight"_a, "bias"_a, "normed"_a,
        "new_residual"_a, "mean"_a, "rstd"_a, "eps"_a, "dropout_p"_a, "seed"_a, "target"_a);
  m.def("dropout_add_layer_norm_backward", &backward, "grad_normed"_a, "grad_new_residual"_a,
        "new_residual"_a, "weight"_a, "mean"_a, "rstd"_a, "grad_x"_a, "grad_residual"_a, "grad_weight"_a,
        "grad_bias"_a, "workspace"_a, "dropout_p"_a, "seed"_a, "target"_a);
  m.def("dropout_add_layer_norm_partials", &dropout_add_layer_norm_partials, "rows"_a);
}

}  // namespace glm
