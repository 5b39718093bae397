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

// Attribute names, made once: a lookup by an interned string is several times cheaper than by characters.
struct Names {
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* stride = PyUnicode_InternFromString("stride");
};

const Names& names() {
  static const Names interned;
  return interned;
}

// The result, or Python's own error as an exception.
py::object checked(PyObject* result) {
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
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
  if (!PyObject_HasAttr(source.ptr(), names().data_ptr)) return false;
  const py::object dtype = checked(PyObject_GetAttr(source.ptr(), names().dtype));
  int code = 0;
  for (const py::object& known : torch_dtypes()) {
    if (dtype.is(known)) break;
    ++code;
  }
  if (code == 5) return false;
  const py::object shape = checked(PyObject_GetAttr(source.ptr(), names().shape));
  const py::object stride = checked(PyObject_CallMethodNoArgs(source.ptr(), names().stride));
  value.dtype = static_cast<glm::DType>(code);
  value.rank = static_cast<int>(py::len(shape));
  if (value.rank > glm::View::kMaxRank) return false;
  read_integers(shape, value.rank, value.shape);
  read_integers(stride, value.rank, value.stride);
  value.data = PyLong_AsVoidPtr(checked(PyObject_CallMethodNoArgs(source.ptr(), names().data_ptr)).ptr());
  return true;
}
