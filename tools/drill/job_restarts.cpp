// Faults of the whole job: all ranks are killed or stopped and the job is started anew, or it is
// started a second time.
#include <algorithm>
#include <csignal>
#include <fstream>
#include <utility>

#include <fmt/format.h>

#include "tools/drill/job.hpp"

namespace meshstage::tools::drill {
namespace {

// A process that is no longer one of the job must find that out within its deadline and this.
constexpr std::int64_t kFenceTime = 10 * kSecond;

}  // namespace

/// How the launcher calls the start of all ranks that the job's processes belong to.
std::string Job::name_of_start() const {
  return fmt::format("start-{}{}", starts_, rival_won_ ? "-at-once" : "");
}

/// Once it is there, processes of the present start of the job do nothing to themselves any more.
std::filesystem::path Job::over_file() const {
  return options_.directory / fmt::format("start-{}-is-over", starts_);
}

/// A directory for the final states of the present start; processes of an old one may train on for
/// a while.
std::filesystem::path Job::make_states() const {
  auto directory = options_.directory / fmt::format("start-{}-states", starts_);
  std::filesystem::create_directory(directory);
  return directory;
}

// What it reported is read, though nobody handles it any more.
void Job::hear_last_words(Seat& seat) {
  for (const auto& text : seat.process->read_lines()) {
    const Event event(text, seat.starts);
    note(seat, event);
    trace(seat, event);
  }
}

/// Its process is stopped, and another one will have the seat.
void Job::becomes_zombie(Seat& seat, std::size_t death) {
  Zombie& zombie = zombies_.emplace_back();
  zombie.process = std::move(seat.process);
  zombie.death = death;
  zombie.host = host_of(seat.rank);
}

// One rank goes down by a fault that all have: so do the others, now; then the job starts anew.
void Job::all_go_down(Seat& first, Death death) {
  const auto stops = [&death](const Seat& seat) {
    return death.fault.how == How::kStop && !(death.fault.half && seat.rank % 2 == 0);
  };
  for (const auto& seat : seats_) {
    if (seat->process) seat->process->send_signal(stops(*seat) ? SIGSTOP : SIGKILL);
  }
  death.seen_by_drill = now_ns();
  death.doing = first.doing;
  death.step = std::max(death.step, job_step());
  for (auto& seat : seats_) {
    if (!seat->process) continue;
    seat->process->wait_until_down();
    hear_last_words(*seat);
    // One that hung before is killed with the others, or stays the old process of its own death.
    Death* before = seat->death > 0 ? &result_.deaths[seat->death - 1] : nullptr;
    if (!stops(*seat)) {
      if (before != nullptr) before->old_processes = 0;
      seat->process.reset();
      continue;
    }
    if (const auto end = seat->process->try_reap()) {
      // It had killed itself at the same moment, or was done.
      const bool killed = end->signalled && end->code == SIGKILL;
      const bool done = !end->signalled && end->code == 0 && seat->finished;
      if (!killed && !done) ended(*seat, *end);
      seat->process.reset();
      continue;
    }
    becomes_zombie(*seat, before != nullptr ? seat->death - 1 : result_.deaths.size());
    if (before == nullptr) ++death.old_processes;
  }
  if (death.fault.how == How::kLose) wipe_vault(std::nullopt);
  const Fault fault = death.fault;
  const std::uint64_t step = death.step;
  result_.deaths.push_back(std::move(death));
  start_anew(fault, step);
}

// `step` is the one that the job had begun.
void Job::start_anew(const Fault& fault, std::uint64_t step) {
  drop_rival();
  std::ofstream(over_file()) << "over\n";
  ++starts_;
  rival_won_ = false;
  result_.states = make_states();
  seating_ = after(fault, seating_);
  if (fault.ranks > 0) {
    seats_.resize(static_cast<std::size_t>(fault.ranks));
    for (std::size_t rank = 0; rank < seats_.size(); ++rank) {
      if (seats_[rank]) continue;
      seats_[rank] = std::make_unique<Seat>();
      seats_[rank]->rank = static_cast<int>(rank);
    }
  }
  for (auto& seat : seats_) seat->death = 0;
  if (fault.twice) return begin_rival(fault, step);
  for (auto& seat : seats_) start(*seat);
}

// Wakes the stopped processes whose ranks are trained by others, and sees them end.
void Job::mind_zombies() {
  for (auto zombie = zombies_.begin(); zombie != zombies_.end();) {
    const Death& death = result_.deaths[zombie->death];
    if (!death.settled) {
      ++zombie;
      continue;
    }
    if (zombie->woken_at == 0) zombie->woken_at = now_ns();
    // Not only once: one that was stopped as it was about to stop itself does so when it wakes up.
    zombie->process->send_signal(death.fault.rank || death.fault.wake ? SIGCONT : SIGKILL);
    const auto end = zombie->process->try_reap();
    const std::int64_t patience =
        kFenceTime + static_cast<std::int64_t>(options_.arguments.deadline_ms) * kMillisecond;
    if (!end) {
      if (now_ns() - zombie->woken_at > patience) {
        throw JobFailed(
            fmt::format("rank {}'s old process was woken up after it was replaced and "
                        "did not end by itself",
                        zombie->process->rank()));
      }
      ++zombie;
      continue;
    }
    see_end(*zombie, *end);
    zombie = zombies_.erase(zombie);
  }
}

// An old process has ended.
void Job::see_end(Zombie& zombie, const End& end) {
  Death& death = result_.deaths[zombie.death];
  const bool of_all = !death.fault.rank;
  const bool woken = !of_all || death.fault.wake;
  zombie.listen();
  const bool went_with_host = zombie.lost_with_host && end.signalled && end.code == SIGKILL;
  if (woken && !went_with_host && (end.signalled || !zombie.said.starts_with("fenced"))) {
    throw JobFailed(fmt::format(
        "rank {}'s old process was woken up after it was replaced; it "
        "must end because it is fenced, but ended with {}{}{}",
        zombie.process->rank(), end.text(), zombie.said.empty() ? "" : ", ", zombie.said));
  }
  // A step that the new job went on from was complete, whoever says so.
  if (zombie.complete > death.recovered_step) {
    result_.wrong.push_back(
        fmt::format("rank {}'s old process called step {} complete when the job had gone on from "
                    "step {} without it",
                    zombie.process->rank(), zombie.complete, death.recovered_step));
  }
  if (woken && went_with_host) ++death.lost_with_hosts;
  if (--death.old_processes > 0) return;
  if (death.lost_with_hosts > 0) {
    death.woken = !of_all
                      ? "its old process was lost with its host"
                      : fmt::format(
                            "woken up, {} of the old processes went with their hosts, the others "
                            "ended by themselves: fenced",
                            death.lost_with_hosts);
  } else {
    death.woken = !of_all ? "woken up, its old process ended by itself: fenced"
                  : woken ? "woken up, the old processes ended by themselves: fenced"
                          : "the old processes were killed";
  }
  finish_death(death);
}

/// The file that the ranks wait for, held before the step of a second start.
std::filesystem::path Job::go_on_file(const Fault& fault) const {
  return options_.directory / fmt::format("go-on-{}", fault.step);
}

/// All ranks train in one generation, and nobody else is there.
bool Job::healthy() const {
  const std::uint64_t generation = seats_.front()->recovered_generation;
  return generation != 0 && zombies_.empty() &&
         std::all_of(result_.deaths.begin(), result_.deaths.end(),
                     [](const Death& death) { return death.settled; }) &&
         std::all_of(seats_.begin(), seats_.end(), [&](const auto& seat) {
           return seat->process && seat->death == 0 && seat->recovered_generation == generation;
         });
}

// Starts the job a second time once it waits for that, and lets it go on when that was refused.
void Job::mind_second_start() {
  if (!healthy()) {
    second_.reset();  // beside this job it need not be refused: again, later
    return;
  }
  if (!second_) {
    const std::uint64_t held = seats_.front()->held;
    const auto asked = std::find_if(pending_.begin(), pending_.end(), [&](const Fault& fault) {
      return fault.how == How::kTwice && fault.step == held;
    });
    const bool all = std::all_of(seats_.begin(), seats_.end(),
                                 [&](const auto& seat) { return seat->held == held; });
    if (all && asked != pending_.end()) begin_second_start(*asked);
    return;
  }
  bool ended = true;
  for (auto& rank : second_->ranks) {
    if (!rank.has_ended()) ended = false;
    if (rank.joined) {
      throw JobFailed(
          fmt::format("rank {} of a second start joined the healthy job", rank.process->rank()));
    }
  }
  if (ended) return end_second_start();
  const std::int64_t patience =
      kFenceTime + static_cast<std::int64_t>(options_.arguments.deadline_ms) * kMillisecond;
  if (now_ns() - second_->started_at > patience) {
    throw JobFailed("a second start beside the healthy job was not refused");
  }
}

void Job::begin_second_start(const Fault& fault) {
  Second second;
  second.fault = fault;
  second.started_at = now_ns();
  const std::string name = fmt::format("second-start-at-{}", fault.step);
  for (const auto& seat : seats_) {
    const auto log = options_.directory / fmt::format("{}-rank-{}.log", name, seat->rank);
    second.ranks.emplace_back();
    second.ranks.back().process =
        std::make_unique<RankProcess>(seat->rank, plan(seat->rank, name, log));
  }
  second_ = std::move(second);
}

void Job::end_second_start() {
  Second second = std::move(*second_);
  second_.reset();
  for (const auto& rank : second.ranks) {
    const End& end = *rank.process->end();
    const auto says = [&rank](const std::string& what) {
      return rank.said.find(what) != std::string::npos;
    };
    const bool refused = !end.signalled && end.code == kCouldNotGoOn && says(" is running: ") &&
                         says('"' + name_of_start() + '"') && says("take_over");
    if (refused) continue;
    throw JobFailed(fmt::format(
        "rank {} of a second start must be refused by the healthy job, but ended with {}{}{}",
        rank.process->rank(), end.text(), rank.said.empty() ? "" : ", ", rank.said));
  }
  SecondStart& told = result_.second_starts.emplace_back();
  told.step = second.fault.step;
  told.ranks = static_cast<int>(second.ranks.size());
  const auto microseconds = (now_ns() - second.started_at) / 1000;
  told.refused_ms = static_cast<double>(microseconds) * 1e-3;
  display_.line(fmt::format(
      "  started a second time at step {} | refused on {} in {:.0f} ms: {} is running, take_over "
      "would take the job | the job went on",
      told.step, told.ranks == 1 ? "its rank" : fmt::format("all {} ranks", told.ranks),
      told.refused_ms, name_of_start()));
  const auto pending = std::find(pending_.begin(), pending_.end(), second.fault);
  if (pending != pending_.end()) pending_.erase(pending);
  std::ofstream(go_on_file(second.fault)) << "go on\n";
}

}  // namespace meshstage::tools::drill
