#include "stager.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/memory/shared_memory.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/tensor/dlpack.hpp>
#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/core/tree/value.hpp>

#include "cuda.hpp"
#include "dlpack_capsule.hpp"
#include "shared_bytes.hpp"

namespace nb = nanobind;

namespace meshstage::python {
namespace {

/// A storage of the other library, by address and size. Its identity is this object's: the host
/// memory that a stager gave it is its own until this object is gone. Keeps nothing alive.
struct SourceStorage {
  Storage storage;
  SourceStorage(std::uintptr_t address, std::size_t nbytes, int cuda_device)
      : storage(Storage::wrap(reinterpret_cast<void*>(address), nbytes, nullptr, {},
                              device_of(cuda_device))) {}
};

Tensor bytes_of(const Storage& storage) {
  return Tensor::on_storage(storage, DType::kU8, {static_cast<std::int64_t>(storage.nbytes())});
}

/// Storages that are staged together, and where they were staged to the last time.
class StorageBatch {
 public:
  explicit StorageBatch(const std::vector<const SourceStorage*>& sources) {
    for (const auto* source : sources) sources_.push_back(bytes_of(source->storage));
    places_.resize(sources.size());
  }

  /// Puts what a stager returned; the indexes of the storages whose place is another one now.
  std::vector<std::size_t> take(const Value& staged) {
    std::vector<std::size_t> moved;
    const auto& list = staged.as<List>();
    for (std::size_t i = 0; i < places_.size(); ++i) {
      const Storage& place = list[i].as<Tensor>().storage();
      if (place == places_[i]) continue;
      places_[i] = place;
      moved.push_back(i);
    }
    return moved;
  }
  [[nodiscard]] const Value& sources() const { return value_; }
  [[nodiscard]] const Storage& place(std::size_t i) const { return places_.at(i); }

 private:
  List sources_;
  Value value_{sources_};  // another handle to it
  std::vector<Storage> places_;
};

/// Copies batches into host memory of its own.
class StorageStager {
 public:
  StorageStager(bool share_memory, int pin_for, std::size_t pin_min_bytes, std::size_t max_bytes,
                unsigned copy_threads, bool verify_source)
      : stager_(StagerOptions{
            .pin_memory = pin_for != kNoCudaDevice,
            .pin_memory_min_bytes = pin_min_bytes,
            .pinner = pin_for == kNoCudaDevice
                          ? nullptr
                          : &DeviceRuntime::of(DeviceType::kCuda).pinner(device_of(pin_for)),
            .share_memory = share_memory,
            .max_bytes = max_bytes,
            .copy_threads = copy_threads,
            .verify_source = verify_source}) {}

  std::vector<std::size_t> stage(StorageBatch& batch) {
    const nb::gil_scoped_release release;
    return batch.take(stager_.stage(batch.sources()));
  }
  void clear() {
    const nb::gil_scoped_release release;
    stager_.clear();
  }
  [[nodiscard]] std::uint64_t cached_bytes() const { return stager_.cached_bytes(); }

 private:
  StateDictStager stager_;
};

}  // namespace

void bind_stager(nb::module_& module) {
  nb::class_<SourceStorage>(module, "SourceStorage")
      .def(nb::init<std::uintptr_t, std::size_t, int>(), nb::arg("address"), nb::arg("nbytes"),
           nb::arg("cuda_device") = kNoCudaDevice);
  nb::class_<StorageBatch>(module, "StorageBatch")
      .def(nb::init<const std::vector<const SourceStorage*>&>(), nb::arg("sources"))
      .def(
          "capsule",
          [](const StorageBatch& batch, std::size_t i) {
            return dlpack_capsule(bytes_of(batch.place(i)));
          },
          nb::arg("index"), "Place `index` as a DLPack capsule of its bytes.")
      .def(
          "location",
          [](const StorageBatch& batch,
             std::size_t i) -> std::optional<std::pair<std::string, std::uint64_t>> {
            const auto& found = batch.place(i).location();
            if (!found) return std::nullopt;
            return std::pair{found->file, found->offset};
          },
          nb::arg("index"), "Where other processes find place `index`, if it is shared.");
  nb::class_<StorageStager>(module, "StorageStager")
      .def(nb::init<bool, int, std::size_t, std::size_t, unsigned, bool>(),
           nb::arg("share_memory") = false, nb::arg("pin_for") = kNoCudaDevice,
           nb::arg("pin_min_bytes") = 1, nb::arg("max_bytes") = 0, nb::arg("copy_threads") = 0,
           nb::arg("verify_source") = false,
           "Page-locks staged storages of at least `pin_min_bytes` for CUDA device `pin_for`.")
      .def("stage", &StorageStager::stage, nb::arg("batch"),
           "Copies all storages of the batch; the indexes of those whose place has changed.")
      .def("clear", &StorageStager::clear)
      .def_prop_ro("cached_bytes", &StorageStager::cached_bytes);
  bind_shared_bytes(module);
}

}  // namespace meshstage::python
