#include "known_tensors.hpp"

#include <algorithm>
#include <utility>

namespace nb = nanobind;

namespace meshstage::python {
namespace {

std::uint64_t number(nb::handle function, nb::handle of) {
  const auto value = PyLong_AsUnsignedLongLong(call(function, of).ptr());
  if (PyErr_Occurred() != nullptr) throw nb::python_error();
  return value;
}

nb::object attribute(nb::handle of, const nb::str& name) {
  PyObject* value = PyObject_GetAttr(of.ptr(), name.ptr());
  if (value == nullptr) throw nb::python_error();
  return nb::steal(value);
}

/// False for a tensor that DLPack does not know, a sub-byte one for example.
bool view_of(const TensorLibrary& library, nb::handle tensor, dlpack::TensorView& view) {
  if (library.view == nullptr) return false;
  if (library.view(tensor.ptr(), &view) == 0) return view.strides != nullptr || view.ndim == 0;
  PyErr_Clear();
  return false;
}

nb::object geometry_of(nb::handle tensor) {
  return nb::make_tuple(tensor.attr("shape"), tensor.attr("stride")(),
                        tensor.attr("storage_offset")());
}

/// Without lazy bits and without attributes. DLPack would not tell.
bool is_plain(const TensorLibrary& library, nb::handle tensor, bool may_be_conjugate) {
  static const nb::str& name =
      *new nb::str(nb::steal<nb::str>(PyUnicode_InternFromString("__dict__")));
  const nb::object attributes = attribute(tensor, name);
  return PyDict_Size(attributes.ptr()) == 0 && call(library.negative, tensor).is(Py_False) &&
         (!may_be_conjugate || call(library.conjugate, tensor).is(Py_False));
}

nb::object dtype_of(nb::handle tensor) {
  static const nb::str& name =
      *new nb::str(nb::steal<nb::str>(PyUnicode_InternFromString("dtype")));
  return attribute(tensor, name);
}

const void* data_of(const dlpack::TensorView& view) {
  return static_cast<const std::byte*>(view.data) + view.byte_offset;
}

}  // namespace

nb::object call(nb::handle function, nb::handle argument) {
  PyObject* arguments[] = {nullptr, argument.ptr()};
  PyObject* result = PyObject_Vectorcall(function.ptr(), arguments + 1,
                                         1 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
  if (result == nullptr) throw nb::python_error();
  return nb::steal(result);
}

bool KnownTensors::add(const TensorLibrary& library, nb::handle tensor) {
  KnownTensor known;
  const nb::object storage = call(library.storage, tensor);
  const auto [found, is_new] = indexes_.try_emplace(storage.ptr(), storages_.size());
  if (is_new) {
    storages_.push_back(
        {storage.ptr(), number(library.address, storage), number(library.nbytes, storage), 0});
  }
  known.storage = found->second;
  known.first_of_storage = is_new;
  ++storages_[known.storage].tensors;
  dlpack::TensorView view;
  if (view_of(library, tensor, view)) {
    known.may_be_conjugate = view.dtype.code == dlpack::kComplex;
    known.data = data_of(view);
    known.rank = static_cast<std::size_t>(view.ndim);
    known.sizes = sizes_.size();
    sizes_.insert(sizes_.end(), view.shape, view.shape + view.ndim);
    sizes_.insert(sizes_.end(), view.strides, view.strides + view.ndim);
  } else {
    known.geometry = geometry_of(tensor);
  }
  if (!is_plain(library, tensor, known.may_be_conjugate)) return false;
  known.dtype = dtype_of(tensor);
  tensors_.push_back(std::move(known));
  return true;
}

bool KnownTensors::is(const TensorLibrary& library, nb::handle tensor, std::size_t i) const {
  const KnownTensor& known = tensors_[i];
  const KnownStorage& of = storages_[known.storage];
  const nb::object storage = call(library.storage, tensor);
  if (storage.ptr() != of.object) return false;
  if (known.first_of_storage && (number(library.address, storage) != of.address ||
                                 number(library.nbytes, storage) != of.nbytes)) {
    return false;
  }
  dlpack::TensorView view;
  if (view_of(library, tensor, view)) {
    const auto rank = static_cast<std::size_t>(view.ndim);
    const std::int64_t* sizes = sizes_.data() + known.sizes;
    if (known.geometry.is_valid() || data_of(view) != known.data || rank != known.rank ||
        !std::equal(sizes, sizes + rank, view.shape) ||
        !std::equal(sizes + rank, sizes + 2 * rank, view.strides)) {
      return false;
    }
  } else if (!known.geometry.is_valid() || !geometry_of(tensor).equal(known.geometry)) {
    return false;
  }
  return dtype_of(tensor).is(known.dtype) && is_plain(library, tensor, known.may_be_conjugate);
}

}  // namespace meshstage::python
