#include "binding/view.h"

namespace py = pybind11;

namespace {

// What of torch is looked up once. Leaked on purpose: it must outlive the interpreter's teardown of this
// module.
struct Torch {
  py::object tensor_type;
  py::object dtypes[5];  // in the order of DType
};

const Torch& torch() {
  static const Torch* found = [] {
    const py::module_ torch = py::module_::import("torch");
    return new Torch{torch.attr("Tensor"),
                     {torch.attr("float32"), torch.attr("float64"), torch.attr("bfloat16"),
                      torch.attr("float16"), torch.attr("int64")}};
  }();
  return *found;
}

// isinstance(source, torch.Tensor), without asking torch's metaclass, which is Python.
bool is_tensor(const py::handle& source) {
  return PyType_IsSubtype(Py_TYPE(source.ptr()),
                          reinterpret_cast<PyTypeObject*>(torch().tensor_type.ptr())) != 0;
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
  if (!is_tensor(source)) return false;
  const py::object dtype = checked(PyObject_GetAttr(source.ptr(), names().dtype));
  int code = 0;
  for (const py::object& known : torch().dtypes) {
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
  if (value.data == nullptr && value.numel() > 0)
    throw py::value_error(
        "expected tensors whose numbers are in memory, got one whose storage was freed or never was");
  return true;
}
