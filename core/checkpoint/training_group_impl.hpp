#pragma once
#include <chrono>
#include <memory>

#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/comm/transport.hpp>
#include <meshstage/core/replicate/collective_waits.hpp>
#include <meshstage/core/replicate/options.hpp>

namespace meshstage::detail {

/// `group`, but a wait for one of its transfers ends with PeerSilent when `waits` has seen no byte
/// move in the whole job for `limit`, also if its deadline is later. So a trainer's collectives
/// need no deadline of their own, and a slow wire is not taken for a dead one. Groups split from
/// the result do the same. A collective of the backend's own has `limit` in all, for nothing shows
/// whether its bytes move. Aborting or closing the result aborts or closes `group`.
std::shared_ptr<ProcessGroup> with_limit(std::shared_ptr<ProcessGroup> group,
                                         std::chrono::milliseconds limit,
                                         std::shared_ptr<replicate::CollectiveWaits> waits);

/// Throws InvalidArgument if CheckpointerOptions::device_group is no device's that NCCL serves, and
/// InvalidState where that device, NCCL or its module cannot be used: why, and what helps. Makes no
/// context and no thread.
void check_device_group(const CheckpointerOptions& options);
/// MembershipOptions::device_transport for these options, whose transport is given; null without
/// CheckpointerOptions::device_group.
std::shared_ptr<Transport> device_transport(const CheckpointerOptions& options);

}  // namespace meshstage::detail
