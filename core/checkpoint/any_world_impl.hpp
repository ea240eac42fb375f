#pragma once
#include <exception>
#include <functional>
#include <optional>
#include <string>

#include <meshstage/core/checkpoint/old_parts_impl.hpp>
#include <meshstage/core/comm/generation.hpp>
#include <meshstage/core/replicate/agent.hpp>
#include <meshstage/core/replicate/options.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage::detail {

/// A generation whose recovery found nothing of the present number of ranks, or nothing of the cut
/// that the trainers have.
struct FoundNothing {
  const CheckpointerOptions& options;
  const Generation& generation;
  Agent& agent;
  std::function<void(const std::string&)> warn;
};

/// Collective over the generation's training group. Ranks may call it `forming_deadline` after one
/// another, and may compare for so long; the reading takes as long as the disk gives something. If
/// there is a step of another number of ranks or of another cut, of which rank 0's agent knows,
/// `state` becomes this rank's part of it. Each rank reads what it needs of that step's files, and
/// of the images that it keeps in memory. The parts that lie on other hosts' disks, or in other
/// ranks' memory, come from the ranks there into memory of this rank: up to what its state takes,
/// and its share of the copies that are compared. Nothing if there is no such step, or without
/// CheckpointerOptions::any_world.
///
/// What one rank throws of what it reads and compares, every rank throws, and no state was touched;
/// it is kept in `cannot` then. Throws RejoinNeeded if the generation ends, and ends it where
/// something else goes wrong at this rank.
[[nodiscard]] std::optional<OldWorldStep> take_old_step(const FoundNothing& job, Value& state,
                                                        std::exception_ptr& cannot);

}  // namespace meshstage::detail
