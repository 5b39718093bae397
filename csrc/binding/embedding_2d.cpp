#include "ops/embedding_2d.h"

#include "binding/register.h"
#include "binding/target.h"
#include "binding/view.h"
#include "cpu/kernels.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace glm {
namespace {

EmbeddingLookup lookup(const View& ids, int64_t table_rows, const View& table, bool add = false) {
  return {static_cast<const int64_t*>(ids.data), table_rows, table.data, add};
}

// None, or where the first id outside its table stands.
py::object fault_or_none(const EmbeddingFault& fault) {
  if (fault.which < 0) return py::none();
  return py::make_tuple(fault.which, fault.row);
}

py::object forward(View tokens, View positions, View block_positions, View token_table, View position_table,
                   View block_table, View out, double dropout_p, uint64_t seed, Target target) {
  const Embedding2DForward params = {
      .dtype = out.dtype,
      .rows = tokens.numel(),
      .width = token_table.shape[1],
      .lookups = {lookup(tokens, token_table.shape[0], token_table),
                  lookup(positions, position_table.shape[0], position_table),
                  lookup(block_positions, block_table.shape[0], block_table)},
      .out = out.data,
      .dropout = {dropout_p, seed},
      .threads = target.threads,
  };
  return fault_or_none(
      run(target, cpu::kernels().embedding_2d_forward, cuda::kernels().embedding_2d_forward, params));
}

// What backward works in on a CPU, in the order in which it lies there.
struct CpuWorkspace {
  int64_t order, first, pieces, keep;  // bytes

  CpuWorkspace(int64_t rows, int64_t width, int64_t table_rows, bool is_double)
      : order(3 * rows * 8),
        first((table_rows + 3 * 2) * 8),
        pieces(rows / kEmbeddingPieceRows * width * (is_double ? 8 : 4)),
        keep(rows * embedding_keep_words(width) * 2) {}
};

// In numbers of int64.
int64_t workspace_size(int64_t rows, int64_t width, int64_t table_rows, bool is_double, Target target) {
  if (target.gpu) return EmbeddingGpuWorkspace(rows, width).size / 8;
  const CpuWorkspace sizes(rows, width, table_rows, is_double);
  return (sizes.order + sizes.first + sizes.pieces + sizes.keep + 7) / 8;
}

py::object backward(View grad, View tokens, View positions, View block_positions, int64_t token_rows,
                    int64_t position_rows, int64_t block_rows, View grad_token_table,
                    View grad_position_table, View grad_block_table, bool add_tokens, View workspace,
                    double dropout_p, uint64_t seed, Target target) {
  const int64_t rows = tokens.numel(), width = grad.shape[grad.rank - 1];
  const CpuWorkspace sizes(rows, width, token_rows + position_rows + block_rows, grad.dtype == DType::f64);
  auto* memory = static_cast<unsigned char*>(workspace.data);
  const Embedding2DBackward params = {
      .dtype = grad.dtype,
      .rows = rows,
      .width = width,
      .lookups = {lookup(tokens, token_rows, grad_token_table, add_tokens),
                  lookup(positions, position_rows, grad_position_table),
                  lookup(block_positions, block_rows, grad_block_table)},
      .grad = grad.data,
      .order = reinterpret_cast<int64_t*>(memory),
      .first = reinterpret_cast<int64_t*>(memory + sizes.order),
      .pieces = memory + sizes.order + sizes.first,
      .keep = reinterpret_cast<uint16_t*>(memory + sizes.order + sizes.first + sizes.pieces),
      .workspace = memory,
      .dropout = {dropout_p, seed},
      .threads = target.threads,
  };
  return fault_or_none(
      run(target, cpu::kernels().embedding_2d_backward, cuda::kernels().embedding_2d_backward, params));
}

}  // namespace

void register_embedding_2d(py::module_& m) {
  m.def("embedding_2d_forward", &forward, "tokens"_a, "positions"_a, "block_positions"_a, "token_table"_a,
        "position_table"_a, "block_table"_a, "out"_a, "dropout_p"_a, "seed"_a, "target"_a);
  m.def("embedding_2d_backward", &backward, "grad"_a, "tokens"_a, "positions"_a, "block_positions"_a,
        "token_rows"_a, "position_rows"_a, "block_rows"_a, "grad_token_table"_a, "grad_position_table"_a,
        "grad_block_table"_a, "add_tokens"_a, "workspace"_a, "dropout_p"_a, "seed"_a, "target"_a);
  m.def("embedding_2d_workspace", &workspace_size, "rows"_a, "width"_a, "table_rows"_a, "is_double"_a,
        "target"_a);
  m.def("embedding_2d_finds_zeros", [](Target target) { return target.gpu; }, "target"_a);
}

}  // namespace glm
