#include <meshstage/core/replicate/agent.hpp>

#include <algorithm>
#include <deque>
#include <sstream>
#include <utility>
#include <variant>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/protocol/transition.hpp>
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
#include <meshstage/core/replicate/trainer.hpp>
#include <meshstage/core/replicate/verifier.hpp>

namespace meshstage {

using namespace replicate;

class Agent::Impl {
 public:
  Impl(CheckpointerOptions options, std::shared_ptr<Store> store, std::uint64_t vault_epoch,
       TaskObserver on_task)
      : engine_(
            std::move(options), vault_epoch,
            [this](std::exception_ptr failure) { failed(std::move(failure)); }, std::move(on_task)),
        files_(engine_.fs, engine_.options.directory, engine_.options.job, engine_.rank,
               engine_.world_size, &engine_.reads),
        store_(engine_, std::move(store)) {
    engine_.feed = [this](protocol::Event event) { feed(std::move(event)); };
    engine_.lose = [this](int peer, ErrorKind kind, std::string why) {
      losses_.lose(peer, kind, std::move(why));
    };
    engine_.lose_in_transfer = [this](int peer, ErrorKind kind, std::string why) {
      // A rank that has finished closes its groups, perhaps before this rank hears that all ranks
      // have finished. Every step is decided by then, so that is no loss. The links still tell a
      // death.
      if (!engine_.state.wants_finish) losses_.lose(peer, kind, std::move(why));
    };
    engine_.lose_store = [this](std::string why) {
      losses_.lose_itself(ErrorKind::kIo, std::move(why));
    };
    engine_.lose_vault = [this](std::string why) {
      losses_.lose_itself(ErrorKind::kFenced, std::move(why));
    };
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    leave();
    persister_.stop();
    engine_.loop.stop();
  }

  // --- the trainer's thread
  void begin(const Generation& generation);
  void leave() noexcept;
  [[nodiscard]] std::uint64_t highest_generation();

  Engine engine_;
  Persistence files_;

 private:
  // --- the loop's thread
  void feed(protocol::Event event);
  void failed(std::exception_ptr failure) noexcept;
  void connect(const protocol::Connect& action);
  void refused(const protocol::Refuse& action);
  void abort_transfers();

  // One action, one call of the part it is for.
  void perform(const protocol::Send& a) { engine_.say(a.to, a.message.generation, a.message.body); }
  void perform(const protocol::VerifySlots&) { restorer_.verify_slots(); }
  void perform(const protocol::VerifyDisk& a) { restorer_.verify_disk(a); }
  void perform(const protocol::PublishOld& a) { restorer_.publish_old(a); }
  void perform(const protocol::FindOld&) { restorer_.find_old(); }
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

  // The loop's thread only:
  std::deque<protocol::Event> events_;
  bool feeding_ = false;
  // The trainer's thread only:
  bool in_generation_ = false;

  // The parts, each after what it uses. Their threads end before the loop's, which ends last.
  StoreWorker store_;
  Slots slots_{engine_};
  Streams streams_{engine_};
  Verifier verifier_{engine_, files_};
  Copier copier_{engine_};
  Persister persister_{engine_, slots_, files_};
  OwnStep own_{engine_, slots_, copier_, streams_};
  Inbox inbox_{engine_, slots_, streams_, verifier_};
  Lender lender_{engine_, streams_, verifier_};
  Restorer restorer_{engine_, store_, verifier_, streams_, inbox_};
  Losses losses_{engine_, store_, own_, persister_};
  Listener listener_{engine_, losses_};
  Finisher finisher_{engine_, store_, slots_, streams_, inbox_, losses_};

 public:
  Trainer trainer_{engine_, own_, slots_, persister_};
};

// --- entering and leaving a generation -----------------------------------------------------------

void Agent::Impl::begin(const Generation& generation) {
  leave();
  engine_.vault.note_generation(generation.number);
  engine_.generation = generation;
  engine_.report.set_generation(generation.number);
  engine_.gate.open();
  unsigned connections = 0;
  for (const int peer : engine_.config->data_peers) {
    const unsigned to = generation.data->connections(peer);
    connections = connections == 0 ? to : std::min(connections, to);
  }
  engine_.gate.count([connections](Stats& stats) { stats.connections = connections; });
  engine_.pace.enter();
  engine_.loop.run([this, number = generation.number] {
    engine_.present = number;
    losses_.enter();
  });
  engine_.bridge.open();
  engine_.scope.open();
  in_generation_ = true;
  engine_.post(protocol::Formed{generation.number});
  // Messages come behind Formed in the loop's queue: those that a faster peer has sent already wait
  // in the links.
  if (generation.links) listener_.listen(*generation.links, false);
}

void Agent::Impl::leave() noexcept {
  if (!in_generation_) return;
  // Until the next begin() every call of the trainer throws.
  engine_.gate.lose({ErrorKind::kCancelled, -1, "the generation was left"});
  const auto cause = engine_.gate.loss()->error();
  engine_.generation.abort(cause);
  engine_.bridge.abort(cause);
  engine_.pace.leave();
  engine_.loop.run([&] {
    own_.let_go(cause);
    slots_.forget_waiting();
  });
  // A rank that sees this rank's links end reads in the Store which death was the first, so this
  // rank's note must be there before.
  store_.settle(Deadline::after(engine_.options.deadline));
  engine_.generation.close();  // rule 8: after this nothing writes into a receive target
  engine_.bridge.close();
  engine_.scope.close();
  engine_.loop.run([&] {
    engine_.present = 0;
    own_.leave(cause);
    persister_.lose(cause);
    inbox_.leave();
    lender_.leave();
    streams_.leave();
    slots_.leave();
  });
  engine_.generation = {};
  in_generation_ = false;
}

std::uint64_t Agent::Impl::highest_generation() {
  std::uint64_t highest = engine_.vault.max_generation();
  try {
    highest = std::max(highest, files_.highest_generation());
  } catch (const Error& e) {
    engine_.report.warn(std::string("the directory of images cannot be read: ") + e.what());
  }
  return highest;
}

// --- events --------------------------------------------------------------------------------------

void Agent::Impl::feed(protocol::Event event) {
  events_.push_back(std::move(event));
  if (feeding_) return;  // an action feeds it: it waits for the other actions
  struct Feeding {
    Impl& impl;
    explicit Feeding(Impl& i) : impl(i) { impl.feeding_ = true; }
    ~Feeding() {
      impl.feeding_ = false;
      impl.events_.clear();
    }
  } feeding(*this);
  std::vector<protocol::Action> actions;
  while (!events_.empty()) {
    const protocol::Event next = std::move(events_.front());
    events_.pop_front();
    actions.clear();
    protocol::transition(engine_.state, next, actions);
    for (const auto& action : actions) {
      std::visit([this](const auto& what) { perform(what); }, action);
    }
  }
}

/// Gets an exception that no part expects, perhaps from the middle of a transition. Ends the
/// generation for this rank and all others; the next generation reads everything anew.
void Agent::Impl::failed(std::exception_ptr failure) noexcept {
  if (engine_.present == 0) return;
  try {
    const std::string why =
        "rank " + std::to_string(engine_.rank) + " cannot go on: " + text_of(failure);
    engine_.report.warn(why);
    if (engine_.state.mode == protocol::Mode::kFinished) {
      engine_.report.warn("the vault stays in " + engine_.options.vault_directory.string());
    } else {
      feed(protocol::Broken{-1, ErrorKind::kPeerLost, why});
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

// --- actions that are no part's ------------------------------------------------------------------

void Agent::Impl::connect(const protocol::Connect& action) {
  verifier_.connect(
      action.peers,
      [this] {
        if (const auto links = engine_.bridge.links()) listener_.listen(*links, true);
        feed(protocol::Connected{});
      },
      [this, peers = action.peers](ErrorKind, const std::string& why) {
        std::string ranks;
        for (const int peer : peers) ranks += " " + std::to_string(peer);
        losses_.lose(-1, ErrorKind::kPeerLost,
                     "rank " + std::to_string(engine_.rank) +
                         " cannot connect to what has its images, rank" + ranks + ": " + why);
      });
}

void Agent::Impl::abort_transfers() {
  const auto cause = Loss{ErrorKind::kPeerLost, -1, "the generation broke"}.error();
  if (engine_.generation.data) engine_.generation.data->abort(cause);
  engine_.bridge.abort(cause);
  slots_.forget_waiting();
}

void Agent::Impl::refused(const protocol::Refuse& action) {
  switch (action.reason) {
    case protocol::Refuse::Reason::kBusy:
    case protocol::Refuse::Reason::kNotReady:
    case protocol::Refuse::Reason::kNotAbove:
      if (!own_.refuse(action)) engine_.report.warn(action.why);
      return;
    case protocol::Refuse::Reason::kMalformed:
      engine_.report.warn("refused: " + action.why);
      return;
    case protocol::Refuse::Reason::kStale:
      engine_.report.info("ignored: " + action.why);
      return;
  }
}

// --- the public face -----------------------------------------------------------------------------

Agent::Agent(CheckpointerOptions options, std::shared_ptr<Store> store, std::uint64_t vault_epoch,
             TaskObserver on_task)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(store), vault_epoch,
                                   std::move(on_task))) {}
Agent::~Agent() = default;
std::uint64_t Agent::highest_generation() const { return impl_->highest_generation(); }
void Agent::begin(const Generation& generation) { impl_->begin(generation); }
void Agent::leave() noexcept { impl_->leave(); }
Recovered Agent::recover(Value& state) { return impl_->trainer_.recover(state); }
protocol::OldStep Agent::old_step() const { return impl_->trainer_.old_step(); }
void Agent::free_superseded(ImageId recovered) { impl_->trainer_.free_superseded(recovered); }
Staging Agent::stage(const Value& state, std::uint64_t step) {
  return impl_->trainer_.stage(state, step);
}
void Agent::tell_waiting() { impl_->trainer_.tell_waiting(); }
void Agent::wait(Staging& staging, std::chrono::milliseconds length) {
  impl_->trainer_.wait(staging, length);
}
void Agent::finish() { impl_->trainer_.finish(); }
void Agent::wish(bool end, bool persist) {
  impl_->engine_.loop.post(
      [engine = &impl_->engine_, end, persist] { engine->feed(protocol::Wished{end, persist}); });
}
bool Agent::end_agreed() const { return impl_->engine_.gate.end_agreed(); }
void Agent::end_generation(const std::string& why) { impl_->trainer_.end_generation(why); }
const std::vector<int>& Agent::wards() const noexcept { return impl_->engine_.config->wards; }
Replica Agent::held(int ward, const NodeRegistry& registry) {
  return impl_->trainer_.held(ward, registry);
}
void Agent::throw_if_lost() const { impl_->engine_.gate.throw_if_lost(); }
Reads& Agent::reads() const noexcept { return impl_->engine_.reads; }
Stats Agent::stats() const { return impl_->engine_.gate.stats(); }

}  // namespace meshstage
