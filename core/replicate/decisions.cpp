#include <meshstage/core/replicate/decisions.hpp>

#include <meshstage/core/generation/number.hpp>

namespace meshstage::replicate {

Decisions::Decisions(Engine& engine, StoreWorker& store, Persister& persister, OwnStep& own,
                     Inbox& inbox)
    : engine_(engine), store_(store), persister_(persister), own_(own), inbox_(inbox) {}

void Decisions::ask_store(const protocol::AskStore& action) {
  const bool in_round = engine_.state.mode == protocol::Mode::kReady;
  const auto patience = in_round ? engine_.options.deadline / 4 : engine_.options.deadline;
  store_.ask(
      "asking the Store whether " + generation_text(engine_.present) + " is the newest",
      looking_for_newer(engine_.options.job, engine_.generation, action), Deadline::after(patience),
      [this, generation = engine_.present, id = action.id](const StoreWorker::Answer& answer) {
        using Found = protocol::StoreAnswered::Found;
        if (generation != engine_.present) return;
        protocol::StoreAnswered event{id};
        if (const auto fenced = fenced_by(answer.error)) {
          event.found = Found::kFenced;
          event.why = *fenced;
        } else if (answer.error && engine_.state.mode != protocol::Mode::kReady) {
          return engine_.lose_store("cannot ask the Store: " + text_of(answer.error));
        } else if (answer.error) {
          event.found = Found::kNothing;
          event.why = text_of(answer.error);
        } else if (answer.value) {
          event.found = Found::kSuperseded;
          event.why = *answer.value;
        }
        engine_.feed(event);
      });
}

void Decisions::announce(const protocol::Announce& action) {
  if (action.verdict == protocol::Verdict::kComplete) completed(action);
  own_.announce(action);
}

void Decisions::completed(const protocol::Announce& action) {
  // A step that goes to disk holds its slots before the next stage() can ask for them.
  if (action.orders.persist) persister_.persist(action.id, own_.persisted(action.id));
  inbox_.complete(action.id);
  engine_.gate.agree_end(action.orders.end);
  engine_.gate.count([&](Stats& stats) { stats.complete_step = action.id.step; });
}

}  // namespace meshstage::replicate
