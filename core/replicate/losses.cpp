#include <meshstage/core/replicate/losses.hpp>

#include <algorithm>
#include <utility>

#include <meshstage/core/comm/generation.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::replicate {

Losses::Losses(Engine& engine, StoreWorker& store, Slots& slots, OwnStep& own, Persister& persister)
    : engine_(engine), store_(store), slots_(slots), own_(own), persister_(persister) {}

void Losses::enter() {
  losing_ = false;
  own_end_.reset();
}

void Losses::lose_itself(ErrorKind kind, std::string why) {
  const std::string seen = kind == ErrorKind::kFenced ? "was fenced: " + why : why;
  own_end_ = OwnEnd{kind, std::move(why)};
  engine_.feed(protocol::Broken{engine_.rank, ErrorKind::kPeerLost, seen});
}

void Losses::lost_link(int peer, LostReason reason, const std::string& detail) {
  if (closing_) return;
  const auto& children = engine_.config->children;
  const bool neighbour = peer == engine_.config->parent ||
                         std::find(children.begin(), children.end(), peer) != children.end();
  if (reason == LostReason::kClosed && !neighbour) {
    // An orderly goodbye overtakes messages that travel along the tree: a last outcome, or Finish.
    // If the peer left too early, its tree neighbours say so, behind these messages.
    return;
  }
  switch (reason) {
    case LostReason::kSilent:
      lose(peer, ErrorKind::kPeerSilent, "was silent: " + detail);
      return;
    case LostReason::kEndOfFile:
      lose(peer, ErrorKind::kPeerLost, "died: " + detail);
      return;
    case LostReason::kProtocol:
      // Both ends live: no rank is lost, and none needs a replacement.
      lose(-1, ErrorKind::kPeerLost,
           "a broken link between rank " + std::to_string(engine_.rank) + " and rank " +
               std::to_string(peer) + ": " + detail + "; nobody died, all rejoin");
      return;
    case LostReason::kClosed:
      lose(peer, ErrorKind::kPeerLost, "left the job");
      return;
  }
}

/// The loss may be the second sign of a death that another rank saw first (rule 7), so this asks
/// the Store which death it was. It does not wait for a Store that does not answer at once.
void Losses::lose(int peer, ErrorKind kind, std::string why) {
  constexpr std::chrono::milliseconds kPatience{250};
  if (engine_.state.mode == protocol::Mode::kBroken ||
      engine_.state.mode == protocol::Mode::kFinished || losing_) {
    return;
  }
  losing_ = true;
  const std::uint64_t generation = engine_.present;
  store_.ask(
      "reading the cause of a death", reading_cause(engine_.options.job, generation),
      Deadline::after(kPatience),
      [this, generation, peer, kind, seen = std::move(why)](const StoreWorker::Answer& answer) {
        if (generation != engine_.present) return;
        if (answer.error) {
          engine_.report.warn("cannot read the cause of a death: " + text_of(answer.error));
        }
        protocol::Broken broken{peer, kind, seen};
        if (answer.value) {
          const DeathCause cause = decode_cause(*answer.value);
          if (cause.rank != peer) broken = {cause.rank, ErrorKind::kPeerLost, cause.reason};
        }
        engine_.feed(broken);
      });
}

void Losses::lose_in_transfer(int peer, ErrorKind kind, std::string why) {
  // A rank that has finished closes its groups, perhaps before this rank hears that all ranks have
  // finished. Every step is decided by then, so that is no loss. The links still tell a death.
  if (!engine_.state.wants_finish) lose(peer, kind, std::move(why));
}

void Losses::note(const protocol::NoteDeath& action) {
  store_.ask("noting a death",
             noting_cause(engine_.options.job, action.generation, {action.rank, action.why}),
             Deadline::after(engine_.options.deadline),
             [this, rank = action.rank](const auto& answer) {
               if (!answer.error) return;
               engine_.report.warn("cannot note the death of rank " + std::to_string(rank) + ": " +
                                   text_of(answer.error));
             });
}

void Losses::report(const protocol::ReportLost& action) {
  Loss loss{action.kind, action.rank, describe(DeathCause{action.rank, action.why})};
  if (own_end_) {
    loss.kind = own_end_->kind;
    loss.why = own_end_->why;
  } else if (action.rank == engine_.rank) {
    loss.kind = ErrorKind::kFenced;
    loss.why = "the other ranks went on with a replacement for rank " +
               std::to_string(action.rank) + " (this process " + action.why + "); end this process";
  }
  const auto error = loss.error();
  engine_.gate.lose(loss);
  own_.lose(error);
  persister_.lose(error);
  engine_.generation.abort(error);
  engine_.bridge.abort(error);
}

void Losses::abort_transfers() {
  const auto cause = Loss{ErrorKind::kPeerLost, -1, "the generation broke"}.error();
  if (engine_.generation.data) engine_.generation.data->abort(cause);
  engine_.bridge.abort(cause);
  slots_.forget_waiting();
}

void Losses::failed(const std::exception_ptr& failure) noexcept {
  if (engine_.present == 0) return;
  try {
    const std::string why =
        "rank " + std::to_string(engine_.rank) + " cannot go on: " + text_of(failure);
    engine_.report.warn(why);
    if (engine_.state.mode == protocol::Mode::kFinished) {
      engine_.report.warn("the vault may stay in " + engine_.options.vault_directory.string());
    } else {
      engine_.feed(protocol::Broken{-1, ErrorKind::kPeerLost, why});
    }
  } catch (...) {  // NOLINT(bugprone-empty-catch): what follows needs no memory
  }
  if (engine_.state.mode == protocol::Mode::kFinished) return engine_.gate.finished();
  if (engine_.gate.is_lost()) return;
  // A transition ended half way, or there is no memory for words.
  engine_.state.mode = protocol::Mode::kBroken;
  engine_.gate.lose_without_memory();
  own_.lose(failure);
  persister_.lose(failure);
  engine_.generation.abort(failure);
}

}  // namespace meshstage::replicate
