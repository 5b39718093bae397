#include "binding/view.h"

namespace py = pybind11;

namespace {

// torch's dtype objects, looked up once. Leaked on purpose: they must outlive the interpreter's teardown of
// this module.
const py::object (&torch_dtypes())[5] {
  static const auto* dtypes = [] {
    const py::module_ torch = py::module_::import("torch");
    return new py::object[5]{torch.attr("float32"), torch.attr("float64"), torch.attr("bfloat16"),
                             torch.attr("float16"), torch.attr("int64")};
  }();
  return *reinterpret_cast<const py::object(*)[5]>(dtypes);
}

void read_integers(const py::handle& sequence, int rank, int64_t* out) {
  for (int d = 0; d < rank; ++d) {
    out[d] =
        PyLong_AsLongLong(PyTuple_GET_ITEM(sequence.ptr(), d));  // torch.Size and stride() are tuples of int
  }
}

}  // namespace

bool pybind11::detail::type_caster<glm::View>::load(handle source, bool) {
  if (source.is_none()) return true;
  if (!py::hasattr(source, "data_ptr")) return false;
  const py::object dtype = source.attr("dtype");
  int code = 0;
  for (const py::object& known : torch_dtypes()) {
    if (dtype.is(known)) break;
    ++code;
  }
  if (code == 5) return false;
  const py::object shape = source.attr("shape"), stride = source.attr("stride")();
  value.dtype = static_cast<glm::DType>(code);
  value.rank = static_cast<int>(py::len(shape));
  if (value.rank > glm::View::kMaxRank) return false;
  read_integers(shape, value.rank, value.shape);
  read_integers(stride, value.rank, value.stride);
  value.data = reinterpret_cast<void*>(source.attr("data_ptr")().cast<uintptr_t>());
  return true;
}
