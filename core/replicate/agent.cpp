#include <meshstage/core/replicate/agent.hpp>

#include <algorithm>
#include <exception>
#include <new>
#include <optional>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/replicate/driver.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/log.hpp>
#include <meshstage/core/replicate/persistence.hpp>
#include <meshstage/core/replicate/trainer.hpp>

namespace meshstage {

using namespace replicate;

class Agent::Impl {
 public:
  Impl(CheckpointerOptions options, std::shared_ptr<Store> store, std::uint64_t vault_epoch,
       TaskObserver on_task, std::shared_ptr<Log> log)
      : engine_(
            std::move(options), vault_epoch,
            [this](const std::exception_ptr& failure) { driver_.failed(failure); },
            std::move(on_task), std::move(log)),
        files_(engine_.fs, engine_.options.directory, engine_.options.job, engine_.rank,
               engine_.world_size, &engine_.reads),
        driver_(engine_, files_, std::move(store)) {}
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    leave();
    driver_.stop_persisting();
    engine_.loop.stop();
  }
  void stop_persisting() noexcept {
    driver_.stop_persisting();
    try {
      engine_.loop.run([] {});         // the loop counts what was written
    } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch): the last figures lack it
    }
  }

  void begin(const Generation& generation);
  void leave() noexcept;
  [[nodiscard]] std::uint64_t highest_generation();

  Engine engine_;

 private:
  void count_connections(const ProcessGroup& group);

  Persistence files_;
  Driver driver_;
  bool in_generation_ = false;

 public:
  Trainer trainer_{engine_, driver_.own(), driver_.slots(), driver_.persister()};
};

// --- entering and leaving a generation -----------------------------------------------------------

void Agent::Impl::begin(const Generation& generation) {
  leave();
  engine_.vault.note_generation(generation.number);
  engine_.generation = generation;
  engine_.collective_waits = std::make_shared<CollectiveWaits>();
  engine_.report.set_generation(generation.number);
  engine_.gate.open();
  count_connections(*generation.data);
  engine_.pace.enter();
  engine_.loop.run([this, number = generation.number] { driver_.enter(number); });
  engine_.bridge.open();
  engine_.scope.open();
  in_generation_ = true;
  engine_.post(protocol::Formed{generation.number});
  // Messages come behind Formed in the loop's queue: those that a faster peer has sent already wait
  // in the links.
  if (generation.links) driver_.listen(*generation.links);
}

void Agent::Impl::count_connections(const ProcessGroup& group) {
  std::optional<unsigned> least, least_in_recovery;
  for (const int peer : engine_.config->data_peers) {
    const unsigned to = engine_.connections_beside_trainer(group, peer);
    least = std::min(least.value_or(to), to);
    const unsigned all = group.connections(peer);
    least_in_recovery = std::min(least_in_recovery.value_or(all), all);
  }
  engine_.gate.count([&](Stats& stats) {
    stats.connections = least.value_or(0);
    stats.recovery_connections = least_in_recovery.value_or(0);
  });
}

void Agent::Impl::leave() noexcept {
  if (!in_generation_) return;
  // Until the next begin() every call of the trainer throws.
  engine_.gate.lose({ErrorKind::kCancelled, -1, "the generation was left"});
  const auto cause = engine_.gate.loss()->error();
  engine_.generation.abort(cause);
  engine_.bridge.abort(cause);
  engine_.pace.leave();
  engine_.loop.run([&] { driver_.let_go(cause); });
  // A rank that sees this rank's links end reads in the Store which death was the first, so this
  // rank's note must be there before.
  driver_.settle_store(Deadline::after(engine_.options.deadline));
  engine_.generation.close();  // rule 8: after this nothing writes into a receive target
  engine_.bridge.close();
  engine_.scope.close();
  engine_.loop.run([&] { driver_.leave(cause); });
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

// --- the public face -----------------------------------------------------------------------------

Agent::Agent(CheckpointerOptions options, std::shared_ptr<Store> store, std::uint64_t vault_epoch,
             TaskObserver on_task, std::shared_ptr<Log> log)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(store), vault_epoch,
                                   std::move(on_task), std::move(log))) {}
Agent::~Agent() = default;
std::uint64_t Agent::highest_generation() const { return impl_->highest_generation(); }
void Agent::begin(const Generation& generation) { impl_->begin(generation); }
void Agent::leave() noexcept { impl_->leave(); }
void Agent::stop_persisting() noexcept { impl_->stop_persisting(); }
Recovered Agent::recover(Value& state) { return impl_->trainer_.recover(state); }
protocol::OldStep Agent::old_step() const { return impl_->trainer_.old_step(); }
const protocol::Failure& Agent::mismatch() const { return impl_->trainer_.mismatch(); }
bool Agent::keeps_old_in_memory() const { return impl_->trainer_.keeps_old_in_memory(); }
void Agent::free_superseded(ImageId recovered) { impl_->trainer_.free_superseded(recovered); }
std::vector<std::shared_ptr<const MappedFile>> Agent::take_old_files() {
  return impl_->trainer_.take_old_files();
}

Staging Agent::stage(const Value& state, std::uint64_t step, Beside beside) {
  return impl_->trainer_.stage(state, step, beside);
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
std::shared_ptr<CollectiveWaits> Agent::collective_waits() const {
  return impl_->engine_.collective_waits;
}
Stats Agent::stats() const { return impl_->engine_.gate.stats(); }

}  // namespace meshstage
