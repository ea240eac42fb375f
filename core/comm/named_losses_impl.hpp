#pragma once
#include <functional>
#include <memory>
#include <string>

#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/comm/process_group.hpp>

namespace meshstage::detail {

/// Notes in the Store that `rank` died, unless a cause is there already; returns the one that is.
using NoteLoss = std::function<DeathCause(int rank, const std::string& reason, Deadline deadline)>;

/// Rule 7 for the trainer's transfers: a backend that sees a connection end names the rank at its
/// other end, which may only have closed it because of a third one's death. So who sees PeerLost
/// here notes it before it can close anything, as the links' owner does, and whoever comes later
/// finds the rank that died and is told of that one. `note` is called on the waiting thread, with
/// at most half a second: a Store that hangs must not hold up the news. It may throw Error, and
/// then nothing is renamed.
std::shared_ptr<ProcessGroup> with_named_losses(std::shared_ptr<ProcessGroup> group, NoteLoss note);

}  // namespace meshstage::detail
