#pragma once
#include <nanobind/nanobind.h>

#include <meshstage/core/tensor/dlpack.hpp>

namespace meshstage::python {

/// The tensor as the capsule that DLPack's Python protocol asks for. The capsule's consumer renames
/// it and takes the tensor; one that nobody takes gives the tensor back itself.
inline nanobind::object dlpack_capsule(const Tensor& tensor) {
  constexpr const char* kName = "dltensor_versioned";
  const auto give_back = [](PyObject* capsule) {
    if (PyCapsule_IsValid(capsule, kName) == 0) return;
    auto* managed =
        static_cast<dlpack::ManagedTensorVersioned*>(PyCapsule_GetPointer(capsule, kName));
    managed->deleter(managed);
  };
  auto* managed = to_dlpack(tensor);
  PyObject* capsule = PyCapsule_New(managed, kName, give_back);
  if (capsule == nullptr) {
    managed->deleter(managed);
    throw nanobind::python_error();
  }
  return nanobind::steal(capsule);
}

}  // namespace meshstage::python
