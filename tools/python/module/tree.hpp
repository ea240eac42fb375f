#pragma once
#include <nanobind/nanobind.h>

#include <set>

#include <meshstage/core/tree/value.hpp>

namespace meshstage::python {

/// Where the tensors of a tree have bytes.
struct TensorPlaces {
  bool cpu = false;
  std::set<int> cuda;  ///< Devices by their numbers.
};

/// `object` as a Value whose tensors are views of its arrays' memory, which it keeps.
/// Dicts (str and int keys), lists and tuples; None, bool, int, float, str, bytes; whatever has the
/// buffer protocol (numpy); what `foreign(object)` returns in place of other objects, unless that
/// is NotImplemented; then DLPack. Throws InvalidArgument with the path for anything else, and for
/// a tensor on a GPU where those cannot be used. `places`, if given, gets where the tensors are.
[[nodiscard]] Value read_tree(nanobind::handle object, nanobind::handle foreign,
                              TensorPlaces* places = nullptr);

/// After a recovery into read_tree(object): puts the scalars of `value` into the containers of
/// `object`, in place, and makes tuples anew where a scalar in one differs. Returns `object`, or
/// what takes its place. Arrays were written in place.
[[nodiscard]] nanobind::object write_tree(nanobind::handle object, const Value& value);

}  // namespace meshstage::python
