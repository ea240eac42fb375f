#pragma once
#include <nanobind/nanobind.h>

namespace meshstage::python {

/// SourceStorage, StorageBatch and StorageStager: what meshstage.torch.StateDictStager is made of.
void bind_stager(nanobind::module_& module);

}  // namespace meshstage::python
