#pragma once
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/mesh/device_mesh.hpp>

namespace meshstage {

/// Makes the process group whose member i is ranks[i]. Every member calls it with the same list.
using GroupFactory = std::function<std::shared_ptr<ProcessGroup>(std::span<const int> ranks)>;

/// The process groups of one rank along the dimensions of a mesh, each made on its first use.
/// A first use is collective over the group's members, like ProcessGroup::split: members that use
/// several groups for the first time must do so in the same order.
///
/// Threads: any; a first use keeps other callers waiting. The object keeps its groups until it is
/// destroyed.
class MESHSTAGE_API MeshGroups {
 public:
  /// Splits groups off `world`; the mesh's ranks are ranks of `world`. Throws InvalidArgument if
  /// the caller's rank is not in the mesh, or if the mesh has a rank that `world` lacks.
  MeshGroups(DeviceMesh mesh, const std::shared_ptr<ProcessGroup>& world);
  /// Makes groups of `rank` with the caller's factory.
  MeshGroups(DeviceMesh mesh, int rank, GroupFactory make);

  [[nodiscard]] const DeviceMesh& mesh() const noexcept { return mesh_; }
  [[nodiscard]] int rank() const noexcept { return rank_; }

  /// The group along one dimension: its rank is mesh().local_rank(rank(), name).
  [[nodiscard]] std::shared_ptr<ProcessGroup> group(std::string_view name);
  /// The group along several dimensions: the slice's ranks in row-major order.
  [[nodiscard]] std::shared_ptr<ProcessGroup> group(std::span<const std::string> names);
  /// Uses an existing group for a dimension. Throws InvalidArgument if the group's size or the
  /// caller's rank in it does not fit the mesh, InvalidState if the dimension has a group already.
  void adopt(std::string_view name, std::shared_ptr<ProcessGroup> group);

 private:
  DeviceMesh mesh_;
  int rank_;
  GroupFactory make_;
  Mutex mutex_;
  std::map<std::vector<std::string>, std::shared_ptr<ProcessGroup>> groups_
      MESHSTAGE_GUARDED_BY(mutex_);
};

}  // namespace meshstage
