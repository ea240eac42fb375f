#pragma once
#include <nanobind/nanobind.h>

namespace meshstage::python {

/// `digest(address, nbytes)`: XXH3-128 of memory, without the GIL.
void bind_digest(nanobind::module_& module);

}  // namespace meshstage::python
