#pragma once
#include <nanobind/nanobind.h>

namespace meshstage::python {

/// DTensorLayout and what makes PlacedTensors, of DTensors.
void bind_dtensor(nanobind::module_& module);

/// The node of a DTensor of which nobody here knows how it lies on its mesh. It has the child
/// "local"; its auxiliary data name the placements.
inline constexpr char kUnplacedType[] = "dtensor.unplaced";

}  // namespace meshstage::python
