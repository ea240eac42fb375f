#pragma once
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>

#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/protocol/events.hpp>
#include <meshstage/core/replicate/copier.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/exchange.hpp>
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
  /// Gets an exception that no part expects, perhaps from the middle of a transition. Ends the
  /// generation for this rank and all others; the next generation reads everything anew.
  void failed(std::exception_ptr failure) noexcept;

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
  void connect(const protocol::Connect& action);
  void refused(const protocol::Refuse& action);
  void abort_transfers();

  // One action, one call of the part it is for.
  void perform(const protocol::Send& a) { engine_.say(a.to, a.message.generation, a.message.body); }
  void perform(const protocol::VerifySlots&) { restorer_.verify_slots(); }
  void perform(const protocol::VerifyDisk& a) { restorer_.verify_disk(a); }
  void perform(const protocol::PublishOld& a) { restorer_.publish_old(a); }
  void perform(const protocol::FindOld& a) { restorer_.find_old(a); }
  void perform(const protocol::Fetch& a) { restorer_.fetch(a); }
  void perform(const protocol::Serve& a) { restorer_.serve(a); }
  void perform(const protocol::ServeLent& a) { lender_.serve(a); }
  void perform(const protocol::StopBorrowing& a) { lender_.stop_borrowing(a); }
  void perform(const protocol::CheckStructure& a) { restorer_.check_structure(a); }
  void perform(const protocol::RestoreTrainer& a) { restorer_.restore(a); }
  void perform(const protocol::RecoveredNothing& a) { restorer_.nothing(a.old); }
  void perform(const protocol::LeftBehind& a) { restorer_.left_behind(a); }
  void perform(const protocol::RecoverFailed& a) { restorer_.failed(a); }
  void perform(const protocol::WriteOwn& a) { own_.write(a); }
  void perform(const protocol::SendImage& a) { own_.send(a); }
  void perform(const protocol::AcceptReplica& a) { inbox_.accept(a); }
  void perform(const protocol::ExpectDigest& a) { inbox_.expect(a); }
  void perform(const protocol::AbortRound& a) { inbox_.abort(a); }
  void perform(const protocol::ReceiveStream& a) { inbox_.stream(a.from, a.start); }
  void perform(const protocol::TakeWant& a) { lender_.want(a.from, a.want); }
  void perform(const protocol::Connect& a) { connect(a); }
  void perform(const protocol::Disconnect&) { verifier_.disconnect(); }
  void perform(const protocol::AbortTransfers&) { abort_transfers(); }
  void perform(const protocol::CheckCopy& a) { own_.check_copy(a); }
  void perform(const protocol::AskStore& a) { losses_.ask_store(a); }
  void perform(const protocol::Announce& a) {
    if (a.verdict == protocol::Verdict::kComplete) {
      // A step that goes to disk holds its slots before the next stage() can ask for them.
      if (a.orders.persist) persister_.persist(a.id, own_.persisted(a.id));
      inbox_.complete(a.id);
      engine_.gate.agree_end(a.orders.end);
      engine_.gate.count([&](Stats& stats) { stats.complete_step = a.id.step; });
    }
    own_.announce(a);
  }
  void perform(const protocol::NoteDeath& a) { losses_.note(a); }
  void perform(const protocol::ReportLost& a) { losses_.report(a); }
  void perform(const protocol::Prune& a) { persister_.all_on_disk(a.older_than); }
  void perform(const protocol::RemoveVault&) { finisher_.remove_vault(); }
  void perform(const protocol::Refuse& a) { refused(a); }
  void perform(const protocol::Reached& a) { engine_.report.reach(a.point, a.id); }

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
  Losses losses_;
  Listener listener_;
  Finisher finisher_;
};

}  // namespace meshstage::replicate
