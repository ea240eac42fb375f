#pragma once
#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "tensor_library.hpp"

namespace meshstage::python {

/// What tensors were when they were staged: storage, geometry and dtype of each. Keeps no storage
/// alive: the owner drops all of it when one of the storages is gone, so that a storage with the
/// same Python object is the same storage.
class KnownTensors {
 public:
  /// Adds a tensor. Returns false if it has a lazy bit or attributes of its own; the object is of
  /// no use then.
  [[nodiscard]] bool add(const TensorLibrary& library, nanobind::handle tensor);
  /// Whether `tensor` is what tensor `i` was.
  [[nodiscard]] bool is(const TensorLibrary& library, nanobind::handle tensor, std::size_t i) const;
  [[nodiscard]] std::size_t size() const { return tensors_.size(); }
  /// Whether another tensor has the storage of tensor `i`, too.
  [[nodiscard]] bool shares_storage(std::size_t i) const {
    return storages_[tensors_[i].storage].tensors > 1;
  }

 private:
  struct KnownStorage {
    PyObject* object;  // compared, never used
    std::uint64_t address, nbytes;
    std::size_t tensors;
  };
  struct KnownTensor {
    std::size_t storage = 0;  // of storages_
    bool first_of_storage = false;
    bool may_be_conjugate = true;
    const void* data = nullptr;
    std::size_t rank = 0;
    std::size_t sizes = 0;      // of sizes_: from there the shape, then the strides
    nanobind::object geometry;  // in place of data and sizes, where the tensor has no view
    nanobind::object dtype;
  };

  std::vector<KnownStorage> storages_;
  std::unordered_map<PyObject*, std::size_t> indexes_;  // of storages_
  std::vector<KnownTensor> tensors_;
  std::vector<std::int64_t> sizes_;
};

}  // namespace meshstage::python
