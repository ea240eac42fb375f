#include <signal.h>
#include <time.h>

#include <atomic>

#include <meshstage/core/checkpoint/termination_impl.hpp>

namespace meshstage::detail {
namespace {

// What the handler reads and writes: lock-free, so that it may.
std::atomic<bool> watched{false};
std::atomic<bool> training_on{false};
std::atomic<bool> came{false};
std::atomic<timer_t> limit_timer{};
std::atomic<time_t> limit_seconds{0};
std::atomic<long> limit_nanoseconds{0};
static_assert(std::atomic<bool>::is_always_lock_free);
static_assert(std::atomic<timer_t>::is_always_lock_free);

void end_at_once() noexcept {
  struct sigaction standard{};
  standard.sa_handler = SIG_DFL;
  (void)::sigaction(SIGTERM, &standard, nullptr);
  (void)::raise(SIGTERM);  // delivered when the handler returns
}

extern "C" void meshstage_on_terminate(int) {
  if (!training_on.load() || came.exchange(true)) return end_at_once();
  // At the limit the signal comes again.
  itimerspec limit{};
  limit.it_value.tv_sec = limit_seconds.load();
  limit.it_value.tv_nsec = limit_nanoseconds.load();
  (void)::timer_settime(limit_timer.load(), 0, &limit, nullptr);
}

bool is_default(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) == 0 && action.sa_handler == SIG_DFL;
}
bool is_ours(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) == 0 && action.sa_handler == &meshstage_on_terminate;
}

}  // namespace

Termination::Termination(bool watch, std::chrono::milliseconds within) {
  if (!watch || watched.exchange(true)) return;
  struct sigaction present{};
  sigevent again{};
  again.sigev_notify = SIGEV_SIGNAL;
  again.sigev_signo = SIGTERM;
  timer_t timer{};
  if (::sigaction(SIGTERM, nullptr, &present) != 0 || !is_default(present) ||
      ::timer_create(CLOCK_MONOTONIC, &again, &timer) != 0) {
    watched = false;  // the program's own handler, or no timer
    return;
  }
  training_on = came = false;
  limit_timer = timer;
  limit_seconds = within.count() / 1000;
  limit_nanoseconds = within.count() % 1000 * 1'000'000;
  struct sigaction ours{};
  ours.sa_handler = &meshstage_on_terminate;
  ours.sa_flags = SA_RESTART;
  ::sigemptyset(&ours.sa_mask);
  (void)::sigaction(SIGTERM, &ours, nullptr);
  watching_ = true;
}

Termination::~Termination() {
  if (!watching_) return;
  struct sigaction present{};
  if (::sigaction(SIGTERM, nullptr, &present) == 0 && is_ours(present)) {
    present.sa_handler = SIG_DFL;
    (void)::sigaction(SIGTERM, &present, nullptr);
  }
  (void)::timer_delete(limit_timer);
  watched = false;
}

void Termination::training(bool on) noexcept {
  if (!watching_) return;
  training_on = on;
  if (!on && came) end_at_once();
}

bool Termination::take() noexcept {
  if (!watching_ || taken_ || !came) return false;
  taken_ = true;
  return true;
}

}  // namespace meshstage::detail
