#pragma once
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>

#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/protocol/events.hpp>
#include <meshstage/core/replicate/collective_progress.hpp>
#include <meshstage/core/replicate/copier.hpp>
#include <meshstage/core/replicate/decisions.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/finisher.hpp>
#include <meshstage/core/replicate/inbox.hpp>
#include <meshstage/core/replicate/lender.hpp>
#include <meshstage/core/replicate/listener.hpp>
#include <meshstage/core/replicate/losses.hpp>
#include <meshstage/core/replicate/own_step.hpp>
#include <meshstage/core/replicate/persister.hpp>
#include <meshstage/core/replicate/restorer.hpp>
#include <meshstage/core/replicate/slots.hpp>
#include <meshstage/core/replicate/store_worker.hpp>
#include <meshstage/core/replicate/streams.hpp>
#include <meshstage/core/replicate/verifier.hpp>

namespace meshstage::replicate {

/// Has the parts of the engine that work on the loop. Gives each event to protocol::transition(),
/// and turns each action that comes back into a call of a part. The constructor sets the functions
/// of the Engine that parts call: feed, lose and those like it.
/// Threads: the loop's.
class Driver {
 public:
  Driver(Engine& engine, Persistence& files, std::shared_ptr<Store> store);
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  /// A generation begins.
  void enter(std::uint64_t generation);
  /// The generation is being left: nothing waits for a slot any more.
  void let_go(const std::exception_ptr& cause);
  /// The generation was left: none of its tasks is left.
  void leave(const std::exception_ptr& cause);
  /// Losses::failed().
  void failed(const std::exception_ptr& failure) noexcept { losses_.failed(failure); }

  /// Listener::listen() for the links of a generation. Threads: any.
  void listen(ControlLinks& links) { listener_.listen(links, false); }
  /// StoreWorker::settle(). Threads: any but the loop's.
  void settle_store(Deadline deadline) { store_.settle(deadline); }
  /// Persister::stop(). Threads: any but the loop's.
  void stop_persisting() { persister_.stop(); }

  // For tasks that Trainer posts:
  [[nodiscard]] OwnStep& own() noexcept { return own_; }
  [[nodiscard]] Slots& slots() noexcept { return slots_; }
  [[nodiscard]] Persister& persister() noexcept { return persister_; }

 private:
  void feed(protocol::Event event);
  struct Perform;  ///< Turns an action into the call of its part (driver.cpp).

  Engine& engine_;
  std::deque<protocol::Event> events_;
  bool feeding_ = false;

  // The parts, each after what it uses. Their threads end before the loop's, which ends last.
  StoreWorker store_;
  Slots slots_;
  Streams streams_;
  Verifier verifier_;
  Copier copier_;
  Persister persister_;
  OwnStep own_;
  Inbox inbox_;
  Lender lender_;
  Restorer restorer_;
  Decisions decisions_;
  Losses losses_;
  CollectiveProgress collectives_;
  Listener listener_;
  Finisher finisher_;
};

}  // namespace meshstage::replicate
