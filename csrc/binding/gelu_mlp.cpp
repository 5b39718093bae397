#include "ops/gelu_mlp.h"

#include "binding/register.h"
#include "binding/target.h"
#include "binding/view.h"
#include "cpu/kernels.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace glm {
namespace {

GeluMlpShape shape(const View& x, const View& w1, const View& w2, bool tanh) {
  return {
      .dtype = x.dtype,
      .kind = tanh ? Gelu::tanh : Gelu::erf,
      .rows = x.shape[0],
      .width = x.shape[1],
      .hidden = w1.shape[0],
      .width_out = w2.shape[0],
  };
}

void forward(View x, View w1, View b1, View w2, View b2, View pre, View post, View y, View workspace,
             bool tanh, Target target) {
  run(target, cpu::kernels().gelu_mlp_forward, cuda::kernels().gelu_mlp_forward,
      {
          .shape = shape(x, w1, w2, tanh),
          .x = x.matrix(),
          .w1 = w1.matrix(),
          .b1 = b1.data,
          .w2 = w2.matrix(),
          .b2 = b2.data,
          .pre = pre.data,
          .post = post.data,
          .y = y.data,
          .workspace = workspace.data,
          .threads = target.threads,
      });
}

void backward(View grad_y, View x, View w1, View w2, View pre, View post, View grad_pre, View workspace,
              View grad_x, View grad_w1, View grad_b1, View grad_w2, View grad_b2, bool tanh, Target target) {
  run(target, cpu::kernels().gelu_mlp_backward, cuda::kernels().gelu_mlp_backward,
      {
          .shape = shape(x, w1, w2, tanh),
          .grad_y = grad_y.matrix(),
          .x = x.matrix(),
          .w1 = w1.matrix(),
          .w2 = w2.matrix(),
          .pre = pre.data,
          .post = post.data,
          .grad_pre = grad_pre.data,
          .sums = workspace.data,
          .workspace = workspace.data,
          .grad_x = grad_x.data,
          .grad_w1 = grad_w1.data,
          .grad_b1 = grad_b1.data,
          .grad_w2 = grad_w2.data,
          .grad_b2 = grad_b2.data,
          .threads = target.threads,
      });
}

// In numbers of float; of forward, which wants room for post, and of backward.
int64_t forward_workspace(int64_t rows, int64_t hidden, bool keeps_post, int element_size, Target target) {
  return target.gpu && !keeps_post ? (rows * hidden * element_size + 3) / 4 : 0;
}

int64_t backward_workspace(int64_t rows, int64_t hidden, int64_t width_out, bool keeps_post, int element_size,
                           Target target) {
  if (!target.gpu) return sum_groups(rows) * std::max(hidden, width_out) * (element_size == 8 ? 2 : 1);
  const GeluMlpShape shape = {
      element_size == 4 ? DType::f32 : DType::bf16, Gelu::tanh, rows, 0, hidden, width_out};
  return (GeluMlpGpuWorkspace(shape, keeps_post).size + 3) / 4;
}

void activate(View pre, View post, bool tanh, Target target) {
  run<void, GeluMlpGelu>(target, nullptr, cuda::kernels().gelu_mlp_gelu,
                         {
                             .dtype = pre.dtype,
                             .kind = tanh ? Gelu::tanh : Gelu::erf,
                             .rows = pre.shape[0],
                             .hidden = pre.shape[1],
                             .pre = pre.data,
                             .post = post.data,
                         });
}

void multiply_by_gelu_grad(View grad_post, View pre, View grad_pre, View post, View sums, View grad_bias,
                           bool tanh, Target target) {
  run<void, GeluMlpGeluGrad>(target, nullptr, cuda::kernels().gelu_mlp_gelu_grad,
                             {
                                 .dtype = pre.dtype,
                                 .kind = tanh ? Gelu::tanh : Gelu::erf,
                                 .rows = pre.shape[0],
                                 .hidden = pre.shape[1],
                                 .grad_post = grad_post.data,
                                 .pre = pre.data,
                                 .grad_pre = grad_pre.data,
                                 .post = post.data,
                                 .sums = sums.data,
                                 .grad_bias = grad_bias.data,
                             });
}

void sum_rows(View values, View sums, View out, Target target) {
  run<void, GeluMlpSumRows>(target, nullptr, cuda::kernels().gelu_mlp_sum_rows,
                            {
                                .dtype = values.dtype,
                                .rows = values.shape[0],
                                .columns = values.shape[1],
                                .values = values.matrix(),
                                .sums = sums.data,
                                .out = out.data,
                            });
}

}  // namespace

void register_gelu_mlp(py::module_& m) {
  m.def("gelu_mlp_forward", &forward, "x"_a, "w1"_a, "b1"_a, "w2"_a, "b2"_a, "pre"_a, "post"_a, "y"_a,
        "workspace"_a, "tanh"_a, "target"_a);
  m.def("gelu_mlp_backward", &backward, "grad_y"_a, "x"_a, "w1"_a, "w2"_a, "pre"_a, "post"_a, "grad_pre"_a,
        "workspace"_a, "grad_x"_a, "grad_w1"_a, "grad_b1"_a, "grad_w2"_a, "grad_b2"_a, "tanh"_a, "target"_a);
  m.def("gelu_mlp_forward_workspace", &forward_workspace, "rows"_a, "hidden"_a, "keeps_post"_a,
        "element_size"_a, "target"_a);
  m.def("gelu_mlp_backward_workspace", &backward_workspace, "rows"_a, "hidden"_a, "width_out"_a,
        "keeps_post"_a, "element_size"_a, "target"_a);
  m.attr("GELU_MLP_TILE_ROWS") = kGeluMlpTileRows;
  m.def("gelu_mlp_row_tiles", &gelu_mlp_row_tiles, "rows"_a);
  m.def("gelu_mlp_gelu", &activate, "pre"_a, "post"_a, "tanh"_a, "target"_a);
  m.def("gelu_mlp_gelu_grad", &multiply_by_gelu_grad, "grad_post"_a, "pre"_a, "grad_pre"_a, "post"_a,
        "sums"_a, "grad_bias"_a, "tanh"_a, "target"_a);
  m.def("gelu_mlp_sum_rows", &sum_rows, "values"_a, "sums"_a, "out"_a, "target"_a);
}

}  // namespace glm
