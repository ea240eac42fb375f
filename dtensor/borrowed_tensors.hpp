#pragma once
#include <string>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/replicate/borrowed_tensors.hpp>
#include <meshstage/mesh/device_mesh.hpp>
#include <meshstage/mesh/failure_domains.hpp>

namespace meshstage::dtensor {

/// Chooses by placements alone which DTensors' local tensors ranks borrow: rank `borrower` borrows
/// a DTensor from the rank that lender_of() returns. If the DTensor has a mesh of its own, such as
/// a slice of `mesh`, that rank must also be one of possible_lenders(mesh). A DTensor is not
/// borrowed if its mesh lacks the borrower, or if its local tensor is empty.
///
/// `lenders` and `paths` are the same on all ranks if all ranks give the same mesh and domains, and
/// if their DTensors have the same paths and placements. Any thread may call `paths`. Both throw
/// InvalidArgument if the search for a lender visits a rank that has no host in `domains`.
[[nodiscard]] MESHSTAGE_API BorrowedTensors borrowed_tensors(
    const DeviceMesh& mesh, const FailureDomains& domains, DomainLevel level = DomainLevel::kHost);

}  // namespace meshstage::dtensor
