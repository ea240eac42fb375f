#pragma once
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/mesh/device_mesh.hpp>

namespace meshstage {

/// Makes the process group whose member i is ranks[i]. Called by every member with the same list.
using GroupFactory = std::function<std::shared_ptr<ProcessGroup>(std::span<const int> ranks)>;

/// The process groups of one rank along the dimensions of a mesh, each made on its first use.
/// First uses are collective over the group's members, as ProcessGroup::split is: members that use
/// several groups for the first time do it in the same order.
///
/// Threads: any; a first use keeps the others waiting. Holds what it made until it is destroyed.
class MESHSTAGE_API MeshGroups {
 public:
  /// The mesh's ranks are ranks of `world`, of which groups are split off. Throws InvalidArgument
  /// if the caller's rank is not in the mesh, or the mesh has a rank that `world` has not.
  MeshGroups(DeviceMesh mesh, const std::shared_ptr<ProcessGroup>& world);
  /// For `rank`, by a factory of the caller's.
  MeshGroups(DeviceMesh mesh, int rank, GroupFactory make);

  [[nodiscard]] const DeviceMesh& mesh() const noexcept { return mesh_; }
  [[nodiscard]] int rank() const noexcept { return rank_; }

  /// The group along one dimension: its rank is mesh().local_rank(rank(), name).
  [[nodiscard]] std::shared_ptr<ProcessGroup> group(std::string_view name);
  /// The group along several dimensions: the slice's ranks in row-major order.
  [[nodiscard]] std::shared_ptr<ProcessGroup> group(std::span<const std::string> names);
  /// Uses a group that exists already for a dimension. Throws InvalidArgument if its size or the
  /// caller's rank in it is not that of the mesh, InvalidState if the dimension has one.
  void adopt(std::string_view name, std::shared_ptr<ProcessGroup> group);

 private:
  DeviceMesh mesh_;
  int rank_;
  GroupFactory make_;
  std::mutex mutex_;
  std::map<std::vector<std::string>, std::shared_ptr<ProcessGroup>> groups_;
};

}  // namespace meshstage
