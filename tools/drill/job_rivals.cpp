// The job is started two times at the same moment: one start gets the job, the other is refused.
#include <algorithm>
#include <fstream>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include "tools/drill/job.hpp"

namespace meshstage::tools::drill {
namespace {

// Until the start without the job has ended, and the deadline: it waits for signs of life of the
// other one.
constexpr std::int64_t kRefusedWithin = 60 * kSecond;

}  // namespace

// Starts each rank once for either start, in turns. Ranks of both know the same faults and wait
// before the same step, so that either may have the seats.
void Job::begin_rival(const Fault& fault, std::uint64_t step) {
  Rival rival;
  rival.fault = fault;
  rival.step = step + 1;
  rival.go_on = options_.directory / fmt::format("go-on-{}-with-one", starts_);
  rival_holds_.emplace_back(rival.step, rival.go_on);
  rival.started_at = now_ns();
  const std::string name = name_of_start() + "-at-once";
  for (auto& seat : seats_) {
    const ProcessPlan other = plan(*seat, name);
    rival.ranks.emplace_back();
    const auto start_other = [&] {
      rival.ranks.back().process = std::make_unique<RankProcess>(seat->rank, other);
    };
    if (seat->rank % 2 != 0) start_other();
    start(*seat);
    if (seat->rank % 2 == 0) start_other();
  }
  rival_ = std::move(rival);
}

// Finds out which start has the job, and waits for the end of the other one.
void Job::mind_rival() {
  if (!rival_) return;
  bool joined = false;
  bool ended = true;
  for (auto& rank : rival_->ranks) {
    if (!rank.has_ended()) ended = false;
    joined = joined || rank.joined;
  }
  const bool seats_joined =
      std::any_of(seats_.begin(), seats_.end(), [](const auto& seat) { return seat->joined; });
  if (joined && seats_joined) {
    throw JobFailed("two starts at the same moment both formed a generation");
  }
  if (joined) return rival_takes_the_seats();
  if (ended) return end_rival();
  const std::int64_t patience =
      kRefusedWithin + static_cast<std::int64_t>(options_.arguments.deadline_ms) * kMillisecond;
  if (now_ns() - rival_->started_at > patience) {
    throw JobFailed("of two starts at the same moment none was refused");
  }
}

void Job::rival_takes_the_seats() {
  rival_won_ = true;
  // All of them before any line is handled: one may say that the whole job goes down.
  std::vector<std::vector<std::string>> lines;
  for (std::size_t i = 0; i < seats_.size(); ++i) {
    Seat& seat = *seats_[i];
    Outsider& rank = rival_->ranks[i];
    std::swap(seat.process, rank.process);
    rank.said = std::exchange(seat.failure, {});  // it may have been refused already
    seat.forget_process();
    rank.joined = false;
    lines.push_back(std::exchange(rank.lines, {}));
  }
  const int start = starts_;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    Seat& seat = *seats_[i];
    for (const auto& text : lines[i]) {
      const Event event(text, seat.starts);
      note(seat, event);
      handle(seat, event);
      if (starts_ != start) return;  // everything was started anew
    }
  }
}

// Another start takes the place of both: the ranks of this one are killed, and nobody waits.
void Job::drop_rival() {
  if (!rival_) return;
  std::ofstream(rival_->go_on) << "go on\n";
  rival_.reset();
}

// The ranks of the start without the job have ended: each must have been refused.
void Job::end_rival() {
  Rival rival = std::move(*rival_);
  rival_.reset();
  for (const auto& rank : rival.ranks) {
    const End& end = *rank.process->end();
    const bool refused =
        !end.signalled && (end.code == kCouldNotGoOn || end.code == kFenced) &&
        (rank.said.find("is running") != std::string::npos || rank.said.starts_with("fenced"));
    if (refused) continue;
    throw JobFailed(fmt::format(
        "rank {} of a start beside one that began at the same moment must be refused, but ended "
        "with {}{}{}",
        rank.process->rank(), end.text(), rank.said.empty() ? "" : ", ", rank.said));
  }
  SecondStart& told = result_.second_starts.emplace_back();
  told.step = rival.step;
  told.at_once = true;
  told.ranks = static_cast<int>(rival.ranks.size());
  told.refused_ms = static_cast<double>(now_ns() - rival.started_at) / 1e6;
  display_.line(fmt::format(
      "  of two starts at the same moment {} got the job, the other was refused in {:.0f} ms",
      name_of_start(), told.refused_ms));
  std::ofstream(rival.go_on) << "go on\n";
}

}  // namespace meshstage::tools::drill
