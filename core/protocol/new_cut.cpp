#include <algorithm>
#include <string>

#include "transition_impl.hpp"

/// Rule 5e with Config::any_world: the chosen step is of this number of ranks, but a trainer cuts
/// its state otherwise (another mesh, other placements or shards). All ranks fetch and compare as
/// ever, so the step is whole at its owners and holders. Then Publish comes down: each rank's own
/// image becomes a file (in a job that writes none it stays in its slot), and Published climbs. The
/// root asks the Store, and Established comes down: the step counts as complete, and is the base of
/// what is staged next. The trainers assemble their states from these images. Nothing of this is
/// kept: after a death all ranks compare anew.
namespace meshstage::protocol {

using Phase = Recovery::Phase;

bool is_cut_anew(const Turn& turn) {
  const OldStep& step = turn.s.recovery.publishing;
  return step.id.exists() && step.world_size == turn.config().world_size;
}

void cut_anew(Turn& turn) {
  Recovery& recovery = turn.s.recovery;
  recovery.unpublished.clear();
  publish(turn, {{recovery.choice.id, turn.config().world_size}, false, recovery.mismatch});
}

void establish_new_cut(Turn& turn) {
  const Recovery& recovery = turn.s.recovery;
  const auto& written = recovery.written;
  for (int rank = 0; rank < turn.config().world_size && turn.rule().publish_cut; ++rank) {
    if (std::find(written.begin(), written.end(), rank) != written.end()) continue;
    Failure failure = *recovery.mismatch;
    failure.why += "; it cannot be cut anew, because not every rank's image became a file: rank " +
                   std::to_string(rank) + "'s did not: " + recovery.unpublished;
    return give_up(turn, failure, -1);
  }
  ask_to_establish(turn);
}

bool expects_new_cut(const Turn& turn, const Publish& message) {
  const OldStep chosen{turn.s.recovery.choice.id, turn.config().world_size};
  return recovering(turn, Phase::kWaiting) && message.mismatch && !message.replicas &&
         chosen.id.exists() && message.step == chosen && !is_cut_anew(turn);
}

}  // namespace meshstage::protocol
