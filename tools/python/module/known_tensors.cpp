#include "known_tensors.hpp"

#include <algorithm>
#include <utility>

namespace nb = nanobind;

namespace meshstage::python {
namespace {

nb::object geometry_of(nb::handle tensor) {
  return nb::make_tuple(tensor.attr("shape"), tensor.attr("stride")(),
                        tensor.attr("storage_offset")());
}

/// Without lazy bits and without attributes. DLPack would not tell.
bool is_plain(const TensorLibrary& library, nb::handle tensor, bool may_be_conjugate) {
  return attributes_of(tensor) == 0 && !has_lazy_bit(library, tensor, may_be_conjugate);
}

}  // namespace

bool KnownTensors::add(const TensorLibrary& library, nb::handle tensor) {
  KnownTensor known;
  const nb::object storage = call(library.storage, tensor);
  const auto [found, is_new] = indexes_.try_emplace(storage.ptr(), storages_.size());
  if (is_new) {
    storages_.push_back({storage.ptr(), call_for_number(library.address, storage),
                         call_for_number(library.nbytes, storage), 0});
  }
  known.storage = found->second;
  known.first_of_storage = is_new;
  ++storages_[known.storage].tensors;
  dlpack::TensorView view;
  if (view_of(library, tensor, view) && view.data != nullptr) {  // it has no place if it is empty
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
  if (known.first_of_storage && (call_for_number(library.address, storage) != of.address ||
                                 call_for_number(library.nbytes, storage) != of.nbytes)) {
    return false;
  }
  dlpack::TensorView view;
  if (view_of(library, tensor, view) && view.data != nullptr) {
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
