// glm_ext_simt: the CUDA kernels under the names and signatures of glm_ext._C, executed on the host. A module
// of the tests, built with -DGLM_BUILD_SIMT=ON and in no wheel.
#include <pybind11/stl.h>

#include <utility>

#include "binding/register.h"
#include "cuda/device.h"
#include "simt/counters.h"
#include "simt/machine.h"
#include "simt/memory.h"
#include "simt/tests/bindings.h"

namespace py = pybind11;
using namespace pybind11::literals;

PYBIND11_MODULE(glm_ext_simt, m) {
  using namespace glm::simt;
  py::enum_<Order>(m, "Order")
      .value("in_order", Order::in_order)
      .value("reversed", Order::reversed)
      .value("skewed", Order::skewed)
      .value("random", Order::random);
  m.def(
      "configure",
      [](Order order, uint64_t seed, bool deferred_copies, bool check_races, bool count_accesses, bool hopper,
         bool ada) { options() = {order, seed, deferred_copies, check_races, count_accesses, hopper, ada}; },
      py::kw_only(), "order"_a = Order::in_order, "seed"_a = 0, "deferred_copies"_a = false,
      "check_races"_a = true, "count_accesses"_a = false, "hopper"_a = false, "ada"_a = false,
      "How the launches that follow are run.");
  m.def(
      "allow",
      [](std::vector<std::pair<uintptr_t, uintptr_t>> regions) { global_memory().allow(std::move(regions)); },
      "regions"_a,
      "The global memory, as (begin, end) addresses, that kernels may touch; all of it where empty.");
  py::class_<AccessCount>(m, "AccessCount")
      .def_property_readonly(
          "space", [](const AccessCount& c) { return c.space == Space::shared ? "shared" : "global"; })
      .def_readonly("file", &AccessCount::file)
      .def_readonly("line", &AccessCount::line)
      .def_readonly("requests", &AccessCount::requests)
      .def_readonly("cost", &AccessCount::cost)
      .def_readonly("ideal", &AccessCount::ideal);
  m.def(
      "take_counts",
      [] {
        const std::vector<AccessCount> counts = counters().totals();
        counters().clear();
        return counts;
      },
      "What memory accesses cost since the last call, by line of source.");

  m.def("use_ffma", &glm::cuda::use_ffma, "wanted"_a, "As in glm_ext._C; off at first.");
  m.def(
      "take_products", [] { return std::exchange(product_count, 0); },
      "How many products of warpgroups warps have started since the last call.");

  glm::register_dropout_add_layer_norm(m);
  glm::register_embedding_2d(m);
  glm::register_gelu_mlp(m);
  glm::register_linear_cross_entropy(m);
  glm::register_span_attention(m);

  py::module_ testing = m.def_submodule("testing");
  glm::cuda::testing::bind(testing);
}
