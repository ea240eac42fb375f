#pragma once
#include <nanobind/nanobind.h>

namespace meshstage::python {

/// Each meshstage::Error becomes the class of meshstage.errors that has its kind, with `rank`,
/// `step` and `path` as attributes.
void bind_errors(nanobind::module_& module);

}  // namespace meshstage::python
