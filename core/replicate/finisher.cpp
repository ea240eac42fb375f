#include <meshstage/core/replicate/finisher.hpp>

#include <meshstage/core/async/deadline.hpp>

namespace meshstage::replicate {

void Finisher::remove_vault() {
  losses_.close();
  if (engine_.generation.data) {
    engine_.generation.data->abort(Loss{ErrorKind::kCancelled, -1, "the job is over"}.error());
  }
  streams_.when_idle([this] {
    slots_.when_free([this] {
      if (slots_.any_in_use()) return false;
      inbox_.leave();
      slots_.post([this, generation = engine_.present] {
        remove_slots(engine_, [this, generation] { removed(generation); });
      });
      return true;
    });
  });
}

void Finisher::removed(std::uint64_t generation) {
  if (generation != engine_.present) return;
  if (engine_.rank != 0) return engine_.gate.finished();
  note_finish(generation);
}

/// The root's note that the job has finished, so that no vault that is out of reach now brings it
/// back. It comes after the vaults: a root that dies between the two must find its images again.
void Finisher::note_finish(std::uint64_t generation) {
  store_.ask(
      "noting that the job has finished", noting_finish(engine_.options.job, generation),
      Deadline::after(engine_.options.deadline / 4), [this](const StoreWorker::Answer& answer) {
        if (answer.error) {
          engine_.report.warn(
              "the Store cannot note that the job has finished: " + text_of(answer.error) +
              "; if a host that had a part in it is out of reach now, clean up there (meshstage "
              "clean) before another job gets this id");
        }
        engine_.gate.finished();
      });
}

}  // namespace meshstage::replicate
