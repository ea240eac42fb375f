#pragma once
#include <functional>
#include <memory>
#include <string>

#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/comm/process_group.hpp>

namespace meshstage::detail {

/// Notes a death, unless one is noted already; returns the one that is there.
using NoteDeath = std::function<DeathCause(int rank, const std::string& reason)>;

/// Rule 7 for the trainer's transfers. A backend that sees a connection end names the rank at its
/// other end, which may only have closed it because of a third one's death: that was noted before
/// anything was closed. So what the group returned sees is noted, too, before its caller hears of
/// it and closes anything, and its PeerLost names the rank that died first.
/// `note` is called on the waiting thread; where it throws Error nothing is renamed.
std::shared_ptr<ProcessGroup> with_named_losses(std::shared_ptr<ProcessGroup> group,
                                                NoteDeath note);

}  // namespace meshstage::detail
