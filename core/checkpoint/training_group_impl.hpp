#pragma once
#include <chrono>
#include <memory>

#include <meshstage/core/comm/process_group.hpp>

namespace meshstage::detail {

/// `group`, but a wait for one of its transfers ends after `limit` at the latest, with PeerSilent.
/// So a trainer's collectives need no deadline of their own. Groups split from the result do the
/// same. Aborting or closing the result aborts or closes `group`.
std::shared_ptr<ProcessGroup> with_limit(std::shared_ptr<ProcessGroup> group,
                                         std::chrono::milliseconds limit);

}  // namespace meshstage::detail
