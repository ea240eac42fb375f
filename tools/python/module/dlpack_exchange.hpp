#pragma once
#include <nanobind/nanobind.h>

#include <cstdint>

#include <meshstage/core/tensor/dlpack.hpp>

namespace meshstage::python {

/// Fills the view of a Python tensor, which lives as long as the tensor does and is not changed.
/// Returns 0; if not, a Python error is set.
using TensorViewFunction = int (*)(void* tensor, dlpack::TensorView* view);

/// The start of DLPack's C exchange table (DLPackExchangeAPI of dlpack.h, since version 1.3).
struct ExchangeTable {
  dlpack::Version version;
  const ExchangeTable* older;  ///< A table of an older major version; null if there is none.
  void* functions_for_managed_tensors[3];
  TensorViewFunction view;  ///< May be null.
};

/// The function that views tensors, from a type's `__dlpack_c_exchange_api__`. Null for None, and
/// for a table without it.
inline TensorViewFunction tensor_view_function(nanobind::handle capsule) {
  if (capsule.is_none()) return nullptr;
  const auto* table =
      static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (table == nullptr) throw nanobind::python_error();
  while (table != nullptr && table->version.major != dlpack::kMajorVersion) table = table->older;
  return table == nullptr ? nullptr : table->view;
}

}  // namespace meshstage::python
