#pragma once
#include <functional>
#include <memory>
#include <string>

#include <meshstage/core/comm/generation.hpp>
#include <meshstage/core/comm/process_group.hpp>

namespace meshstage::detail {

/// Notes in the Store that `rank` died, unless a cause of death is there already; returns the cause
/// that is there now.
using NoteLoss = std::function<DeathCause(int rank, const std::string& reason, Deadline deadline)>;

/// Rule 7 for the trainer's transfers and for collectives of the backend's own. A backend that sees
/// a connection end names the rank at the other end, but that rank may have closed it only because
/// a third one died. So the first rank that sees PeerLost here notes the loss before it closes
/// anything, as the links' owner does. A rank that comes later finds the note, and its PeerLost
/// names the rank that died. `note` is called on the waiting thread, with at most half a second: a
/// Store that hangs must not hold up the news. It may throw Error; then PeerLost keeps the rank
/// that the backend named.
std::shared_ptr<ProcessGroup> with_named_losses(std::shared_ptr<ProcessGroup> group, NoteLoss note);

}  // namespace meshstage::detail
