#pragma once
#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/inbox.hpp>
#include <meshstage/core/replicate/own_step.hpp>
#include <meshstage/core/replicate/persister.hpp>
#include <meshstage/core/replicate/store_worker.hpp>

namespace meshstage::replicate {

/// The root's decisions, at this rank: the root asks the Store before each of them, and every rank
/// gives a step's outcome to the parts that need it.
/// Threads: the loop's.
class Decisions {
 public:
  Decisions(Engine& engine, StoreWorker& store, Persister& persister, OwnStep& own, Inbox& inbox);

  /// The root's question of rule 12. Feeds StoreAnswered. A Store that does not answer costs steps,
  /// not the job: each step fails, with a warning, well before the trainer's deadline.
  void ask_store(const protocol::AskStore& action);
  /// Called when the protocol knows a step's outcome.
  void announce(const protocol::Announce& action);

 private:
  void completed(const protocol::Announce& action);

  Engine& engine_;
  StoreWorker& store_;
  Persister& persister_;
  OwnStep& own_;
  Inbox& inbox_;
};

}  // namespace meshstage::replicate
