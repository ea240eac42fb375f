#pragma once
#include <nanobind/nanobind.h>

namespace meshstage::python {

/// map_shared(file, offset, nbytes): another process' shared memory, as a DLPack capsule of bytes.
void bind_shared_bytes(nanobind::module_& module);

}  // namespace meshstage::python
