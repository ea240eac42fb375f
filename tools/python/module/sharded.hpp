#pragma once
#include <nanobind/nanobind.h>

namespace meshstage::python {

/// ShardedLayout, which makes PlacedTensors of ShardedTensors.
void bind_sharded(nanobind::module_& module);

}  // namespace meshstage::python
