#include "ops/embedding_2d.h"

#include "binding/register.h"
#include "binding/view.h"
#include "cpu/kernels.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace glm {
namespace {

EmbeddingLookup lookup(const View& ids, int64_t table_rows, const View& table) {
  return {static_cast<const int64_t*>(ids.data), table_rows, table.data};
}

// None, or where the first id outside its table stands.
py::object fault_or_none(const EmbeddingFault& fault) {
  if (fault.which < 0) return py::none();
  return py::make_tuple(fault.which, fault.row);
}

py::object forward(View tokens, View positions, View block_positions, View token_table, View position_table,
                   View block_table, View out, double dropout_p, uint64_t seed, int threads) {
  const Embedding2DForward params = {
      .dtype = out.dtype,
      .rows = tokens.numel(),
      .width = token_table.shape[1],
      .lookups = {lookup(tokens, token_table.shape[0], token_table),
                  lookup(positions, position_table.shape[0], position_table),
                  lookup(block_positions, block_table.shape[0], block_table)},
      .out = out.data,
      .dropout = {dropout_p, seed},
      .threads = threads,
  };
  EmbeddingFault fault;
  {
    const py::gil_scoped_release release;
    fault = cpu::kernels().embedding_2d_forward(params);
  }
  return fault_or_none(fault);
}

py::object backward(View grad, View tokens, View positions, View block_positions, int64_t token_rows,
                    int64_t position_rows, int64_t block_rows, View grad_token_table,
                    View grad_position_table, View grad_block_table, View order, View first, View pieces,
                    double dropout_p, uint64_t seed, int threads) {
  const Embedding2DBackward params = {
      .dtype = grad.dtype,
      .rows = tokens.numel(),
      .width = pieces.shape[1],
      .lookups = {lookup(tokens, token_rows, grad_token_table),
                  lookup(positions, position_rows, grad_position_table),
                  lookup(block_positions, block_rows, grad_block_table)},
      .grad = grad.data,
      .order = static_cast<int64_t*>(order.data),
      .first = static_cast<int64_t*>(first.data),
      .pieces = pieces.data,
      .dropout = {dropout_p, seed},
      .threads = threads,
  };
  EmbeddingFault fault;
  {
    const py::gil_scoped_release release;
    fault = cpu::kernels().embedding_2d_backward(params);
  }
  return fault_or_none(fault);
}

}  // namespace

void register_embedding_2d(py::module_& m) {
  m.def("embedding_2d_forward", &forward, "tokens"_a, "positions"_a, "block_positions"_a, "token_table"_a,
        "position_table"_a, "block_table"_a, "out"_a, "dropout_p"_a, "seed"_a, "threads"_a);
  m.def("embedding_2d_backward", &backward, "grad"_a, "tokens"_a, "positions"_a, "block_positions"_a,
        "token_rows"_a, "position_rows"_a, "block_rows"_a, "grad_token_table"_a, "grad_position_table"_a,
        "grad_block_table"_a, "order"_a, "first"_a, "pieces"_a, "dropout_p"_a, "seed"_a, "threads"_a);
  m.attr("embedding_2d_piece_rows") = kEmbeddingPieceRows;
}

}  // namespace glm
