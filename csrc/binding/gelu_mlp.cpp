#include "ops/gelu_mlp.h"

#include "binding/register.h"
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

void forward(View x, View w1, View b1, View w2, View b2, View pre, View post, View y, bool tanh,
             int threads) {
  const py::gil_scoped_release release;
  cpu::kernels().gelu_mlp_forward({
      .shape = shape(x, w1, w2, tanh),
      .x = x.matrix(),
      .w1 = w1.matrix(),
      .b1 = b1.data,
      .w2 = w2.matrix(),
      .b2 = b2.data,
      .pre = pre.data,
      .post = post.data,
      .y = y.data,
      .threads = threads,
  });
}

void backward(View grad_y, View x, View w1, View w2, View pre, View post, View grad_pre, View sums,
              View grad_x, View grad_w1, View grad_b1, View grad_w2, View grad_b2, bool tanh, int threads) {
  const py::gil_scoped_release release;
  cpu::kernels().gelu_mlp_backward({
      .shape = shape(x, w1, w2, tanh),
      .grad_y = grad_y.matrix(),
      .x = x.matrix(),
      .w1 = w1.matrix(),
      .w2 = w2.matrix(),
      .pre = pre.data,
      .post = post.data,
      .grad_pre = grad_pre.data,
      .sums = sums.data,
      .grad_x = grad_x.data,
      .grad_w1 = grad_w1.data,
      .grad_b1 = grad_b1.data,
      .grad_w2 = grad_w2.data,
      .grad_b2 = grad_b2.data,
      .threads = threads,
  });
}

}  // namespace

void register_gelu_mlp(py::module_& m) {
  m.def("gelu_mlp_forward", &forward, "x"_a, "w1"_a, "b1"_a, "w2"_a, "b2"_a, "pre"_a, "post"_a, "y"_a,
        "tanh"_a, "threads"_a);
  m.def("gelu_mlp_backward", &backward, "grad_y"_a, "x"_a, "w1"_a, "w2"_a, "pre"_a, "post"_a, "grad_pre"_a,
        "sums"_a, "grad_x"_a, "grad_w1"_a, "grad_b1"_a, "grad_w2"_a, "grad_b2"_a, "tanh"_a, "threads"_a);
}

}  // namespace glm
