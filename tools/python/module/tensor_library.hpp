#pragma once
#include <nanobind/nanobind.h>

#include <cstdint>

#include "dlpack_exchange.hpp"

namespace meshstage::python {

void bind_tensor_library(nanobind::module_& module);

/// How the tensors of another library are read. Each function takes one argument.
struct TensorLibrary {
  nanobind::object storage;              ///< Of a tensor: always the same object for one storage.
  nanobind::object address, nbytes;      ///< Of a storage.
  nanobind::object conjugate, negative;  ///< Of a tensor: has it the lazy bit?
  nanobind::object alias;                ///< Of a tensor: a new tensor on its storage.
  nanobind::object dtypes;  ///< A dict: what images call the library's dtypes, where they have any.
  TensorViewFunction view = nullptr;  ///< Null: shapes and strides are read as attributes.
};

/// `function(argument)`, by the cheapest call that there is.
[[nodiscard]] nanobind::object call(nanobind::handle function, nanobind::handle argument);
/// The same, of a function that returns an int of at most 64 bits without a sign.
[[nodiscard]] std::uint64_t call_for_number(nanobind::handle function, nanobind::handle argument);

/// Views a tensor. Returns false for one that DLPack does not know, a sub-byte one for example.
[[nodiscard]] bool view_of(const TensorLibrary& library, nanobind::handle tensor,
                           dlpack::TensorView& view);
[[nodiscard]] const std::byte* data_of(const dlpack::TensorView& view);
[[nodiscard]] nanobind::object dtype_of(nanobind::handle tensor);
/// How many attributes of its own a tensor has.
[[nodiscard]] std::size_t attributes_of(nanobind::handle tensor);
/// Whether its elements are to be conjugated or negated. DLPack does not tell.
[[nodiscard]] bool has_lazy_bit(const TensorLibrary& library, nanobind::handle tensor,
                                bool may_be_conjugate);

}  // namespace meshstage::python
