#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/reshard/assembly.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage::python {

/// "same", "first", "per rank" or "summed", by the path of a value or of what it is in.
using KindNames = std::map<std::string, std::string>;

/// The kinds of plain values. A path's own kind counts, or else that of the nearest of what it is
/// in; the user's before the state's. Threads: recover() reads them on the thread that set them.
class PlainKinds {
 public:
  /// Throws InvalidArgument for a kind that there is not.
  explicit PlainKinds(const KindNames& of_user);
  void set_of_state(const KindNames& of_state);
  [[nodiscard]] PlainKind of(const std::string& path) const;
  /// The user's paths at which `state` has nothing. A path below what each rank has for itself does
  /// not count: another rank may have it.
  [[nodiscard]] std::vector<std::string> absent_from(const Dict& state) const;

 private:
  std::map<std::string, PlainKind> of_user_, of_state_;
};

/// The user's paths that no rank's state has. Collective.
[[nodiscard]] std::vector<std::string> absent_everywhere(const PlainKinds& kinds, const Dict& state,
                                                         ProcessGroup& group);

/// What a Checkpointer needs whose job may have any number of ranks.
[[nodiscard]] ReshardOptions any_world_options(std::shared_ptr<const PlainKinds> kinds);

}  // namespace meshstage::python
