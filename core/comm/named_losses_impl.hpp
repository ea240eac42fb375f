#pragma once
#include <functional>
#include <memory>
#include <optional>

#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/comm/process_group.hpp>

namespace meshstage::detail {

/// Rule 7 for the trainer's transfers: a backend that sees a connection end names the rank at its
/// other end, which may only have closed it because of a third one's death. That was noted before
/// anything was closed, so PeerLost from the group returned names the rank that died.
/// `cause` is asked then, on the waiting thread; it may throw Error, and then nothing is renamed.
std::shared_ptr<ProcessGroup> with_named_losses(std::shared_ptr<ProcessGroup> group,
                                                std::function<std::optional<DeathCause>()> cause);

}  // namespace meshstage::detail
