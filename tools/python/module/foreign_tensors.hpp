#pragma once
#include <nanobind/nanobind.h>

namespace meshstage::python {

/// ForeignStorage and Tensor: views of another library's memory. ForeignTensors: the plain tensors
/// of one state as such views.
void bind_foreign_tensors(nanobind::module_& module);

}  // namespace meshstage::python
