#include "binding/target.h"

bool pybind11::detail::type_caster<glm::Target>::load(handle source, bool) {
  if (PyTuple_CheckExact(source.ptr()) && PyTuple_GET_SIZE(source.ptr()) == 2) {
    value.gpu = true;
    value.device = static_cast<int>(PyLong_AsLong(PyTuple_GET_ITEM(source.ptr(), 0)));
    value.stream = static_cast<cudaStream_t>(PyLong_AsVoidPtr(PyTuple_GET_ITEM(source.ptr(), 1)));
  } else {
    value.threads = static_cast<int>(PyLong_AsLong(source.ptr()));
  }
  if (PyErr_Occurred() == nullptr) return true;
  PyErr_Clear();
  return false;
}
