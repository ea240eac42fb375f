#pragma once
#include <chrono>
#include <memory>

#include <meshstage/core/comm/process_group.hpp>

namespace meshstage::detail {

/// `group`, but a wait for one of its transfers ends with PeerSilent when no byte has moved between
/// the two ranks for `limit`, and a wait with a deadline also after `limit` in all. So a trainer's
/// collectives need no deadline of their own, and a slow wire is not taken for a dead one. Groups
/// split from the result do the same. Aborting or closing the result aborts or closes `group`.
std::shared_ptr<ProcessGroup> with_limit(std::shared_ptr<ProcessGroup> group,
                                         std::chrono::milliseconds limit);

}  // namespace meshstage::detail
