#include "tensor_library.hpp"

#include <cstddef>
#include <utility>

namespace nb = nanobind;

namespace meshstage::python {
namespace {

/// A name that lives as long as the process does.
PyObject* interned(const char* name) {
  PyObject* text = PyUnicode_InternFromString(name);
  if (text == nullptr) throw nb::python_error();
  return text;
}

nb::object attribute(nb::handle of, PyObject* name) {
  PyObject* value = PyObject_GetAttr(of.ptr(), name);
  if (value == nullptr) throw nb::python_error();
  return nb::steal(value);
}

bool is_true(nb::handle value) {
  const int truth = PyObject_IsTrue(value.ptr());
  if (truth < 0) throw nb::python_error();
  return truth == 1;
}

}  // namespace

nb::object call(nb::handle function, nb::handle argument) {
  PyObject* arguments[] = {nullptr, argument.ptr()};
  PyObject* result = PyObject_Vectorcall(function.ptr(), arguments + 1,
                                         1 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
  if (result == nullptr) throw nb::python_error();
  return nb::steal(result);
}

std::uint64_t call_for_number(nb::handle function, nb::handle argument) {
  const auto value = PyLong_AsUnsignedLongLong(call(function, argument).ptr());
  if (PyErr_Occurred() != nullptr) throw nb::python_error();
  return value;
}

bool view_of(const TensorLibrary& library, nb::handle tensor, dlpack::TensorView& view) {
  if (library.view == nullptr) return false;
  if (library.view(tensor.ptr(), &view) == 0) return view.strides != nullptr || view.ndim == 0;
  PyErr_Clear();
  return false;
}

const std::byte* data_of(const dlpack::TensorView& view) {
  return static_cast<const std::byte*>(view.data) + view.byte_offset;
}

nb::object dtype_of(nb::handle tensor) {
  static PyObject* const name = interned("dtype");
  return attribute(tensor, name);
}

std::size_t attributes_of(nb::handle tensor) {
  static PyObject* const name = interned("__dict__");
  return nb::len(attribute(tensor, name));
}

bool has_lazy_bit(const TensorLibrary& library, nb::handle tensor, bool may_be_conjugate) {
  return is_true(call(library.negative, tensor)) ||
         (may_be_conjugate && is_true(call(library.conjugate, tensor)));
}

void bind_tensor_library(nb::module_& module) {
  nb::class_<TensorLibrary>(module, "TensorLibrary")
      .def(
          "__init__",
          [](TensorLibrary* self, nb::object storage, nb::object address, nb::object nbytes,
             nb::object conjugate, nb::object negative, nb::object alias, nb::dict dtypes,
             nb::object exchange) {
            new (self) TensorLibrary{std::move(storage),  std::move(address),
                                     std::move(nbytes),   std::move(conjugate),
                                     std::move(negative), std::move(alias),
                                     std::move(dtypes),   tensor_view_function(exchange)};
          },
          nb::kw_only(), nb::arg("storage"), nb::arg("address"), nb::arg("nbytes"),
          nb::arg("conjugate"), nb::arg("negative"), nb::arg("alias"), nb::arg("dtypes"),
          nb::arg("exchange").none(),
          "`exchange`: the tensor type's __dlpack_c_exchange_api__, or None.");
}

}  // namespace meshstage::python
