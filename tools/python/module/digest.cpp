#include "digest.hpp"

#include <nanobind/stl/string.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include <meshstage/core/identity/digest.hpp>

namespace nb = nanobind;

namespace meshstage::python {

void bind_digest(nb::module_& module) {
  module.def(
      "digest",
      [](std::uintptr_t address, std::size_t nbytes) {
        const nb::gil_scoped_release release;
        return to_hex(digest128({reinterpret_cast<const std::byte*>(address), nbytes}));
      },
      nb::arg("address"), nb::arg("nbytes"),
      "XXH3-128 of these bytes, as 32 hexadecimal digits. Other threads of Python run meanwhile.");
}

}  // namespace meshstage::python
