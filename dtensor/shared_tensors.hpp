#pragma once
#include <string>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/replicate/shared_tensors.hpp>
#include <meshstage/mesh/device_mesh.hpp>
#include <meshstage/mesh/failure_domains.hpp>

namespace meshstage::dtensor {

/// Which local tensors of DTensors ranks keep for each other, by their placements alone: a DTensor
/// of rank `owner` is kept by rank `at` if its mesh replicates it there and shared_at() says so. On
/// a mesh of its own, such as a slice of `mesh`, it counts if that is one of shared_ranks(mesh).
/// A DTensor whose mesh lacks the owner, or whose local tensor is empty, does not count.
///
/// `ranks` and `paths` are the same on all ranks, of the same mesh and domains and a program that
/// gives all ranks DTensors with the same paths and placements. `paths` may be called by any
/// thread. Both throw InvalidArgument if a mesh has a rank that is looked at and has no host in
/// `domains`.
[[nodiscard]] MESHSTAGE_API SharedTensors shared_tensors(const DeviceMesh& mesh,
                                                         const FailureDomains& domains,
                                                         DomainLevel level = DomainLevel::kHost);

}  // namespace meshstage::dtensor
