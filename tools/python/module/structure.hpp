#pragma once
#include <nanobind/nanobind.h>

namespace meshstage::python {

/// KnownTypes and Structure: states that were staged before, recognized and built again.
void bind_structure(nanobind::module_& module);

}  // namespace meshstage::python
