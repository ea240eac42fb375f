#include <meshstage/core/replicate/driver.hpp>

#include <string>
#include <utility>
#include <variant>
#include <vector>

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
      decisions_(engine, store_, persister_, own_, inbox_),
      losses_(engine, store_, slots_, own_, persister_),
      collectives_(engine),
      listener_(engine, verifier_, losses_, collectives_),
      finisher_(engine, store_, slots_, streams_, inbox_, losses_) {
  engine_.feed = [this](protocol::Event event) { feed(std::move(event)); };
  engine_.lose = [this](int peer, ErrorKind kind, std::string why) {
    losses_.lose(peer, kind, std::move(why));
  };
  engine_.lose_in_transfer = [this](int peer, ErrorKind kind, std::string why) {
    losses_.lose_in_transfer(peer, kind, std::move(why));
  };
  engine_.lose_store = [this](std::string why) { losses_.lose_store(std::move(why)); };
  engine_.lose_vault = [this](std::string why) { losses_.lose_vault(std::move(why)); };
}

void Driver::enter(std::uint64_t generation) {
  engine_.present = generation;
  losses_.enter();
  collectives_.enter();
}

void Driver::let_go(const std::exception_ptr& cause) {
  own_.let_go(cause);
  slots_.forget_waiting();
}

void Driver::leave(const std::exception_ptr& cause) {
  engine_.present = 0;
  collectives_.leave();
  own_.leave(cause);
  persister_.lose(cause);
  inbox_.leave();
  lender_.leave();
  streams_.leave();
  slots_.leave();
}

/// One action, one call of the part it is for.
struct Driver::Perform {
  Driver& d;

  void operator()(const protocol::Send& a) const {
    d.engine_.say(a.to, a.message.generation, a.message.body);
  }
  void operator()(const protocol::VerifySlots&) const { d.restorer_.verify_slots(); }
  void operator()(const protocol::VerifyDisk& a) const { d.restorer_.verify_disk(a); }
  void operator()(const protocol::PublishOld& a) const { d.restorer_.publish_old(a); }
  void operator()(const protocol::FindOld& a) const { d.restorer_.find_old(a); }
  void operator()(const protocol::Fetch& a) const { d.restorer_.fetch(a); }
  void operator()(const protocol::Serve& a) const { d.restorer_.serve(a); }
  void operator()(const protocol::ServeLent& a) const { d.lender_.serve(a); }
  void operator()(const protocol::StopBorrowing& a) const { d.lender_.stop_borrowing(a); }
  void operator()(const protocol::CheckStructure& a) const { d.restorer_.check_structure(a); }
  void operator()(const protocol::RestoreTrainer& a) const { d.restorer_.restore(a); }
  void operator()(const protocol::RecoveredNothing& a) const { d.restorer_.nothing(a.old); }
  void operator()(const protocol::Reassemble& a) const { d.restorer_.reassemble(a); }
  void operator()(const protocol::LeftBehind& a) const { d.restorer_.left_behind(a); }
  void operator()(const protocol::RecoverFailed& a) const { d.restorer_.failed(a); }
  void operator()(const protocol::WriteOwn& a) const { d.own_.write(a); }
  void operator()(const protocol::SendImage& a) const { d.own_.send(a); }
  void operator()(const protocol::CheckCopy& a) const { d.own_.check_copy(a); }
  void operator()(const protocol::Refuse& a) const { d.own_.refuse(a); }
  void operator()(const protocol::AcceptReplica& a) const { d.inbox_.accept(a); }
  void operator()(const protocol::ExpectDigest& a) const { d.inbox_.expect(a); }
  void operator()(const protocol::AbortRound& a) const { d.inbox_.abort(a); }
  void operator()(const protocol::ReceiveStream& a) const { d.inbox_.stream(a.from, a.start); }
  void operator()(const protocol::TakeWant& a) const { d.lender_.want(a.from, a.want); }
  void operator()(const protocol::Connect& a) const { d.listener_.connect(a); }
  void operator()(const protocol::Disconnect&) const { d.verifier_.disconnect(); }
  void operator()(const protocol::AskStore& a) const { d.decisions_.ask_store(a); }
  void operator()(const protocol::Announce& a) const { d.decisions_.announce(a); }
  void operator()(const protocol::AbortTransfers&) const { d.losses_.abort_transfers(); }
  void operator()(const protocol::NoteDeath& a) const { d.losses_.note(a); }
  void operator()(const protocol::ReportLost& a) const { d.losses_.report(a); }
  void operator()(const protocol::Prune& a) const { d.persister_.all_on_disk(a.older_than); }
  void operator()(const protocol::RemoveVault&) const { d.finisher_.remove_vault(); }
  void operator()(const protocol::Reached& a) const { d.engine_.report.reach(a.point, a.id); }
};

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
    for (const auto& action : actions) std::visit(Perform{*this}, action);
  }
}

}  // namespace meshstage::replicate
