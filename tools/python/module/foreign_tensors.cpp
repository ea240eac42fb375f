#include "foreign_tensors.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

#include <meshstage/core/tensor/tensor.hpp>

#include "cuda.hpp"
#include "released.hpp"
#include "tensor_library.hpp"

namespace nb = nanobind;

namespace meshstage::python {
namespace {

/// A storage of another library: tensors that name the same one share it.
struct ForeignStorage {
  std::uintptr_t address;
  Storage storage;
  ForeignStorage(std::uintptr_t begin, std::size_t nbytes, nb::handle owner, int cuda_device)
      : address(begin),
        storage(Storage::wrap(reinterpret_cast<void*>(begin), nbytes, keep(owner), {},
                              device_of(cuda_device))) {}
};

Tensor foreign_tensor(const ForeignStorage& storage, const std::string& dtype, Shape shape,
                      Strides strides, std::int64_t offset) {
  const auto found = dtype_from_string(dtype);
  if (!found) throw InvalidArgument("no dtype is called " + dtype);
  return Tensor::on_storage(storage.storage, *found, std::move(shape), std::move(strides), offset);
}

/// Makes views of the memory of the tensors of one state, which they keep. Tensors that share a
/// storage share one here. Threads: those that have the GIL, one at a time.
class ForeignTensors {
 public:
  explicit ForeignTensors(std::shared_ptr<const TensorLibrary> library)
      : library_(std::move(library)) {}

  /// Nothing for an empty tensor, for one on a device, and for one whose bytes alone would not give
  /// it back: the caller looks closer. Nobody may resize a storage while the state is read.
  std::optional<Tensor> read(nb::handle tensor) {
    const PyObject* name = PyDict_GetItemWithError(library_->dtypes.ptr(), dtype_of(tensor).ptr());
    if (name == nullptr) {
      if (PyErr_Occurred() != nullptr) throw nb::python_error();
      return std::nullopt;
    }
    dlpack::TensorView view;
    if (!view_of(*library_, tensor, view) || view.device.type != dlpack::kCpu) return std::nullopt;
    if (has_lazy_bit(*library_, tensor, view.dtype.code == dlpack::kComplex)) return std::nullopt;
    const auto dtype = dtype_from_string(nb::cast<const char*>(nb::handle(name)));
    if (!dtype) return std::nullopt;
    const Shape shape(view.shape, view.shape + view.ndim);
    if (view.data == nullptr || element_count(shape) == 0) return std::nullopt;
    const ForeignStorage& known = storage(call(library_->storage, tensor), kNoCudaDevice);
    const auto offset = reinterpret_cast<std::uintptr_t>(data_of(view)) - known.address;
    return Tensor::on_storage(known.storage, *dtype, shape,
                              Strides(view.strides, view.strides + view.ndim),
                              static_cast<std::int64_t>(offset / size_of(*dtype)));
  }

  /// The view of a storage. The same for the same storage.
  const ForeignStorage& storage(nb::handle object, int cuda_device) {
    const auto found = storages_.find(object.ptr());
    if (found != storages_.end()) return found->second;
    const auto address = static_cast<std::uintptr_t>(call_for_number(library_->address, object));
    const auto nbytes = static_cast<std::size_t>(call_for_number(library_->nbytes, object));
    return storages_.try_emplace(object.ptr(), address, nbytes, object, cuda_device).first->second;
  }

 private:
  std::shared_ptr<const TensorLibrary> library_;
  std::unordered_map<PyObject*, ForeignStorage> storages_;  // which keep the objects
};

}  // namespace

void bind_foreign_tensors(nb::module_& module) {
  nb::class_<ForeignStorage>(module, "ForeignStorage")
      .def(nb::init<std::uintptr_t, std::size_t, nb::handle, int>(), nb::arg("address"),
           nb::arg("nbytes"), nb::arg("owner"), nb::arg("cuda_device") = kNoCudaDevice);
  nb::class_<Tensor>(module, "Tensor")
      .def_static("on_storage", &foreign_tensor, nb::arg("storage"), nb::arg("dtype"),
                  nb::arg("shape"), nb::arg("strides"), nb::arg("offset"))
      .def("__repr__", &Tensor::describe);
  nb::class_<ForeignTensors>(module, "ForeignTensors")
      .def(nb::init<std::shared_ptr<const TensorLibrary>>(), nb::arg("library"))
      .def("read", &ForeignTensors::read, nb::arg("tensor"))
      .def("storage", &ForeignTensors::storage, nb::arg("storage"), nb::arg("cuda_device"),
           nb::rv_policy::copy);
}

}  // namespace meshstage::python
