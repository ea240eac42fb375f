#include "shared_bytes.hpp"

#include <nanobind/stl/string.h>

#include <cstdint>
#include <string>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/shared_memory.hpp>
#include <meshstage/core/tensor/tensor.hpp>

#include "dlpack_capsule.hpp"

namespace nb = nanobind;

namespace meshstage::python {
namespace {

nb::object capsule_of_shared(const std::string& file, std::uint64_t offset, std::uint64_t nbytes) {
  auto mapped = map_shared(file);
  if (offset > mapped->size() || mapped->size() - offset < nbytes) {
    throw CorruptData(file + " has " + std::to_string(mapped->size()) + " bytes, too few for " +
                      std::to_string(nbytes) + " bytes at " + std::to_string(offset));
  }
  std::byte* const at = mapped->data() + offset;
  const Storage storage = Storage::wrap(at, nbytes, std::move(mapped), {.shared = true});
  return dlpack_capsule(
      Tensor::on_storage(storage, DType::kU8, {static_cast<std::int64_t>(nbytes)}));
}

}  // namespace

void bind_shared_bytes(nb::module_& module) {
  module.def("map_shared", &capsule_of_shared, nb::arg("file"), nb::arg("offset"),
             nb::arg("nbytes"),
             "Bytes of another process' shared memory, as a DLPack capsule. The mapping outlives "
             "that process.");
}

}  // namespace meshstage::python
