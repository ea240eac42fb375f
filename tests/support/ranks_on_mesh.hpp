// Ranks as threads on a mesh, over in-process groups.
#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include <meshstage/core/comm/in_process/fabric.hpp>
#include <meshstage/mesh/mesh_groups.hpp>

#include "tests/conformance/ranks.hpp"

namespace meshstage::test {

inline Deadline soon() { return Deadline::after(std::chrono::seconds(30)); }

/// Fully linked groups of `world` ranks.
inline std::vector<std::shared_ptr<ProcessGroup>> in_process_groups(
    int world, testing::Linked linked = testing::Linked::kAll) {
  InProcessFabric fabric;
  return testing::make_groups([&](int rank) { return fabric.attach(rank); }, world, linked);
}

/// Runs body(groups) as each rank of the mesh, whose ranks are those of a world as large.
class RanksOnMesh {
 public:
  explicit RanksOnMesh(const DeviceMesh& mesh)
      : mesh_(mesh), groups_(in_process_groups(static_cast<int>(mesh.size()))) {
    for (const auto& group : groups_) {
      on_mesh_.push_back(std::make_unique<MeshGroups>(mesh, group));
    }
  }
  [[nodiscard]] const DeviceMesh& mesh() const { return mesh_; }
  [[nodiscard]] int size() const { return static_cast<int>(groups_.size()); }

  /// Element r is what rank r threw ("" if nothing).
  std::vector<std::string> errors(const std::function<void(MeshGroups&)>& body) {
    return testing::run_ranks(size(), [&](int r) { body(*on_mesh_[static_cast<std::size_t>(r)]); });
  }
  /// Throws if a rank does.
  void run(const std::function<void(MeshGroups&)>& body) {
    testing::run_ranks_without_error(size(),
                                     [&](int r) { body(*on_mesh_[static_cast<std::size_t>(r)]); });
  }

 private:
  DeviceMesh mesh_;
  std::vector<std::shared_ptr<ProcessGroup>> groups_;
  std::vector<std::unique_ptr<MeshGroups>> on_mesh_;
};

}  // namespace meshstage::test
