#include <utility>

#include <meshstage/core/comm/job_entries_impl.hpp>
#include <meshstage/core/comm/signs_of_life_impl.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::detail {

SignsOfLife::SignsOfLife(std::shared_ptr<Store> store, std::string job, int rank,
                         std::chrono::milliseconds interval, std::function<std::uint64_t()> trainer)
    : store_(std::move(store)),
      job_(std::move(job)),
      rank_(rank),
      interval_(interval),
      trainer_(std::move(trainer)),
      thread_("ms-alive", [this](const std::stop_token& stop) { run(stop); }) {}

void SignsOfLife::in(std::uint64_t generation, bool forming) {
  const MutexLock lock(mutex_);
  generation_ = generation;
  forming_ = forming;
}

void SignsOfLife::run(const std::stop_token& stop) {
  while (true) {
    std::uint64_t generation = 0;
    bool forming = false;
    {
      MutexLock lock(mutex_);
      (void)changed_.wait_until(lock, stop, Deadline::after(interval_), [] { return false; });
      generation = generation_;
      forming = forming_;
    }
    if (stop.stop_requested()) return;
    try {
      if (generation != 0) answer(generation, forming);
    } catch (...) {
      // The Store does not answer, so a newcomer cannot ask either; or there was no memory for the
      // answer. Both try again.
    }
  }
}

void SignsOfLife::answer(std::uint64_t generation, bool forming) {
  const Deadline deadline = Deadline::after(interval_ * 8);
  const auto question = store_->get(generation_key(job_, generation, "asked"), deadline);
  if (!question || *question == question_) return;
  const std::uint64_t sign = trainer_ ? trainer_() : last_ + 1;
  if (forming || sign != last_) ++signs_;
  last_ = sign;
  store_->set(alive_key(job_, generation, rank_),
              std::to_string(++answers_) + " " + std::to_string(signs_), deadline);
  question_ = *question;
}

}  // namespace meshstage::detail
