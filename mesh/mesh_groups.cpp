#include <meshstage/mesh/mesh_groups.hpp>

#include <meshstage/core/error/error.hpp>

namespace meshstage {

MeshGroups::MeshGroups(DeviceMesh mesh, const std::shared_ptr<ProcessGroup>& world)
    : MeshGroups(std::move(mesh), world->rank(),
                 [world](std::span<const int> ranks) { return world->split(ranks); }) {
  for (std::int64_t i = 0; i < mesh_.size(); ++i) {
    if (mesh_.rank_at(i) >= world->size()) {
      throw InvalidArgument(mesh_.to_string() + " has rank " + std::to_string(mesh_.rank_at(i)) +
                            ", the group it is made on only 0.." +
                            std::to_string(world->size() - 1));
    }
  }
}

MeshGroups::MeshGroups(DeviceMesh mesh, int rank, GroupFactory make)
    : mesh_(std::move(mesh)), rank_(rank), make_(std::move(make)) {
  if (!mesh_.contains(rank)) {
    throw InvalidArgument("rank " + std::to_string(rank) + " is not in " + mesh_.to_string() +
                          ": only its ranks have groups");
  }
}

std::shared_ptr<ProcessGroup> MeshGroups::group(std::string_view name) {
  const std::string one(name);
  return group(std::span(&one, 1));
}

std::shared_ptr<ProcessGroup> MeshGroups::group(std::span<const std::string> names) {
  std::vector<std::string> key(names.begin(), names.end());
  const MutexLock lock(mutex_);
  if (const auto it = groups_.find(key); it != groups_.end()) return it->second;
  std::shared_ptr<ProcessGroup> made = make_(mesh_.slice(names, rank_).ranks());
  groups_.emplace(std::move(key), made);
  return made;
}

void MeshGroups::adopt(std::string_view name, std::shared_ptr<ProcessGroup> group) {
  const int here = mesh_.local_rank(rank_, name);
  if (group->size() != mesh_.size(name) || group->rank() != here) {
    throw InvalidArgument("the group given for mesh dimension '" + std::string(name) +
                          "' has size " + std::to_string(group->size()) + " and is rank " +
                          std::to_string(group->rank()) + ", the mesh says size " +
                          std::to_string(mesh_.size(name)) + " and rank " + std::to_string(here));
  }
  const MutexLock lock(mutex_);
  if (!groups_.emplace(std::vector<std::string>{std::string(name)}, std::move(group)).second) {
    throw InvalidState("mesh dimension '" + std::string(name) +
                       "' has a group already: adopt before the first use");
  }
}

}  // namespace meshstage
