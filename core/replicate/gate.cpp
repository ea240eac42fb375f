#include <meshstage/core/replicate/gate.hpp>

#include <utility>

#include <meshstage/core/error/exception_of.hpp>

namespace meshstage::replicate {

std::exception_ptr Loss::error() const {
  return exception_of(kind, why, rank < 0 ? std::nullopt : std::optional<int>(rank), path);
}

void TrainerGate::open() {
  const MutexLock lock(mutex_);
  loss_.reset();
  command_ = {};
  ordered_ = in_flight_ = recovered_ = end_agreed_ = false;
  sending_ = 0;
  waited_ = 0;
}

void TrainerGate::lose(const Loss& loss) {
  const MutexLock lock(mutex_);
  if (!loss_) loss_ = loss;
  changed_.notify_all();
}

void TrainerGate::lose_without_memory() noexcept {
  const MutexLock lock(mutex_);
  if (!loss_) loss_.emplace();
  changed_.notify_all();
}

std::optional<Loss> TrainerGate::loss() const {
  const MutexLock lock(mutex_);
  return loss_;
}

bool TrainerGate::is_lost() const noexcept {
  const MutexLock lock(mutex_);
  return loss_.has_value();
}

void TrainerGate::rethrow_loss() const {
  if (loss_) std::rethrow_exception(loss_->error());
}

void TrainerGate::throw_if_lost() const {
  const MutexLock lock(mutex_);
  rethrow_loss();
}

void TrainerGate::finished() {
  const MutexLock lock(mutex_);
  finished_ = true;
  changed_.notify_all();
}

template <class Ready>
void TrainerGate::wait(MutexLock& lock, const Patience& patience, Ready ready) {
  while (!changed_.wait_until(lock, Deadline::after(patience.length), ready)) {
    const std::uint32_t times = ++waited_;
    lock.unlock();
    patience.waited(times);
    lock.lock();
  }
}

std::uint32_t TrainerGate::count_wait() {
  const MutexLock lock(mutex_);
  return ++waited_;
}

bool TrainerGate::enter_step(WhenBusy when, const Patience& patience) {
  MutexLock lock(mutex_);
  if (finished_) throw InvalidState("stage() after finish()");
  rethrow_loss();
  require_recovered("stage()");
  if (in_flight_ && when == WhenBusy::kSkip) {
    ++stats_.skipped;
    return false;
  }
  wait(lock, patience, [this]() MESHSTAGE_REQUIRES(mutex_) { return loss_ || !in_flight_; });
  rethrow_loss();
  in_flight_ = true;
  waited_ = 0;
  return true;
}

void TrainerGate::leave_step() {
  const MutexLock lock(mutex_);
  in_flight_ = false;
  changed_.notify_all();
}

void TrainerGate::agree_end(bool end) {
  const MutexLock lock(mutex_);
  end_agreed_ = end;
}

bool TrainerGate::end_agreed() const {
  const MutexLock lock(mutex_);
  return end_agreed_;
}

void TrainerGate::check_recover() const {
  const MutexLock lock(mutex_);
  if (finished_) throw InvalidState("recover() after finish()");
  if (recovered_) {
    throw InvalidState("this generation has recovered; rejoin() before the next recover()");
  }
  // No command would come: the engine gave the last one to the recover() that threw.
  if (ordered_ && !loss_) {
    throw InvalidState("a recover() of this generation threw; rejoin() before the next recover()");
  }
}

void TrainerGate::command(RecoverCommand command) {
  const MutexLock lock(mutex_);
  command_ = std::move(command);
  changed_.notify_all();
}

RecoverCommand TrainerGate::next_command(const Patience& patience) {
  using Kind = RecoverCommand::Kind;
  MutexLock lock(mutex_);
  wait(lock, patience,
       [this]() MESHSTAGE_REQUIRES(mutex_) { return loss_ || command_.kind != Kind::kNone; });
  // A recovery that all ranks agreed on before the loss still restores the trainer; the next call
  // throws.
  if (loss_ && command_.kind != Kind::kRestore && command_.kind != Kind::kFailed) rethrow_loss();
  if (command_.kind != Kind::kCheck) ordered_ = true;
  return std::exchange(command_, {});
}

void TrainerGate::recovered() {
  const MutexLock lock(mutex_);
  recovered_ = true;
}

void TrainerGate::check_recovered(const char* what) const {
  const MutexLock lock(mutex_);
  if (finished_) throw InvalidState(std::string(what) + " after finish()");
  rethrow_loss();
  require_recovered(what);
}

void TrainerGate::require_recovered(const char* what) const {
  if (recovered_) return;
  throw InvalidState(std::string(what) +
                     " before recover() in this generation: call recover() first");
}

void TrainerGate::change(int TrainerGate::* counter, int by) {
  const MutexLock lock(mutex_);
  this->*counter += by;
  changed_.notify_all();
}

template <class Ready>
void TrainerGate::wait(MutexLock& lock, Deadline deadline, const char* what, Ready ready) {
  const auto over = [&]() MESHSTAGE_REQUIRES(mutex_) { return loss_ || ready(); };
  if (!changed_.wait_until(lock, deadline, over)) throw Timeout(std::string("finish(): ") + what);
  rethrow_loss();
}

bool TrainerGate::wait_idle(const Patience& patience) {
  MutexLock lock(mutex_);
  if (finished_) return true;
  rethrow_loss();
  require_recovered("finish()");
  // A slot that is still read when all ranks have finished would keep the vault. Silence on its
  // link ends a sending.
  wait(lock, patience,
       [this]() MESHSTAGE_REQUIRES(mutex_) { return loss_ || (!in_flight_ && sending_ == 0); });
  rethrow_loss();
  wait(lock, Deadline::after(patience.length), "a step is still being written to disk",
       [this]() MESHSTAGE_REQUIRES(mutex_) { return persisting_ == 0; });
  return false;
}

void TrainerGate::wait_finished(Deadline deadline) {
  MutexLock lock(mutex_);
  wait(lock, deadline, "some rank did not call finish()",
       [this]() MESHSTAGE_REQUIRES(mutex_) { return finished_; });
  // The removal of older images may have been posted after wait_idle().
  if (!changed_.wait_until(lock, deadline,
                           [this]() MESHSTAGE_REQUIRES(mutex_) { return persisting_ == 0; }))
    throw Timeout("finish(): older images are still being removed");
}

Stats TrainerGate::stats() const {
  const MutexLock lock(mutex_);
  return stats_;
}

void TrainerGate::keep_apart(int rank) {
  const MutexLock lock(mutex_);
  apart_.insert(rank);
}

std::set<int> TrainerGate::apart() const {
  const MutexLock lock(mutex_);
  return apart_;
}

}  // namespace meshstage::replicate
