#include <meshstage/core/replicate/driver.hpp>

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/protocol/transition.hpp>

namespace meshstage::replicate {

Driver::Driver(Engine& engine, Persistence& files, std::shared_ptr<Store> store)
    : engine_(engine),
      store_(engine, std::move(store)),
      slots_(engine),
      streams_(engine),
      verifier_(engine, files),
      copier_(engine),
      persister_(engine, slots_, files),
      own_(engine, slots_, copier_, streams_),
      inbox_(engine, slots_, streams_, verifier_),
      lender_(engine, streams_, verifier_),
      restorer_(engine, store_, verifier_, streams_, inbox_),
      losses_(engine, store_, own_, persister_),
      listener_(engine, losses_),
      finisher_(engine, store_, slots_, streams_, inbox_, losses_) {
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

// --- entering and leaving a generation -----------------------------------------------------------

void Driver::enter(std::uint64_t generation) {
  engine_.present = generation;
  losses_.enter();
}

void Driver::let_go(const std::exception_ptr& cause) {
  own_.let_go(cause);
  slots_.forget_waiting();
}

void Driver::leave(const std::exception_ptr& cause) {
  engine_.present = 0;
  own_.leave(cause);
  persister_.lose(cause);
  inbox_.leave();
  lender_.leave();
  streams_.leave();
  slots_.leave();
}

// --- events --------------------------------------------------------------------------------------

void Driver::feed(protocol::Event event) {
  events_.push_back(std::move(event));
  if (feeding_) return;  // an action feeds it: it waits for the other actions
  struct Feeding {
    Driver& driver;
    explicit Feeding(Driver& d) : driver(d) { driver.feeding_ = true; }
    ~Feeding() {
      driver.feeding_ = false;
      driver.events_.clear();
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

void Driver::failed(std::exception_ptr failure) noexcept {
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

void Driver::connect(const protocol::Connect& action) {
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

void Driver::abort_transfers() {
  const auto cause = Loss{ErrorKind::kPeerLost, -1, "the generation broke"}.error();
  if (engine_.generation.data) engine_.generation.data->abort(cause);
  engine_.bridge.abort(cause);
  slots_.forget_waiting();
}

void Driver::refused(const protocol::Refuse& action) {
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

}  // namespace meshstage::replicate
