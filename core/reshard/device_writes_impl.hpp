#pragma once
#include <span>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/reshard/assembly_impl.hpp>

namespace meshstage::detail {

/// Fills the targets that lie on devices, behind the work that the trainer has issued on `streams`
/// (see RestoreOptions). Their elements are put together in host memory first, up to 64 MiB at a
/// time, in the order in which the device's memory has them. Errors are those of restore_into().
void write_to_devices(std::span<const BoxTarget> targets, std::span<const TrainerStream> streams,
                      Deadline deadline);

}  // namespace meshstage::detail
