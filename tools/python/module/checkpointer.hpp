#pragma once
#include <nanobind/nanobind.h>

namespace meshstage::python {

/// Checkpointer, Staging, LogQueue: what meshstage.Checkpointer is made of.
void bind_checkpointer(nanobind::module_& module);

}  // namespace meshstage::python
