// What the ranks report, and what the job makes of it.
#include <poll.h>

#include <algorithm>
#include <csignal>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/drill/job.hpp"

namespace meshstage::tools::drill {

// Waits for something to happen, then takes all lines that are there, in the order of their times.
void Job::pump(int wait_ms) {
  std::vector<pollfd> polled{{signals_.descriptor(), POLLIN, 0}};
  const auto add = [&polled](const RankProcess* process) {
    if (process != nullptr && process->report() >= 0) {
      polled.push_back({process->report(), POLLIN, 0});
    }
  };
  for (const auto& seat : seats_) add(seat->process.get());
  for (const auto& zombie : zombies_) add(zombie.process.get());
  ::poll(polled.data(), polled.size(), wait_ms);
  if (const auto signal = signals_.take()) throw Interrupted{*signal};

  std::vector<std::pair<Seat*, Event>> events;
  for (const auto& seat : seats_) {
    if (!seat->process) continue;
    for (const auto& text : seat->process->read_lines()) {
      events.emplace_back(seat.get(), Event(text, seat->starts));
      note(*seat, events.back().second);
    }
  }
  for (auto& zombie : zombies_) zombie.listen();
  std::stable_sort(events.begin(), events.end(),
                   [](const auto& a, const auto& b) { return a.second.at < b.second.at; });
  const int start = starts_;
  for (const auto& [seat, event] : events) {
    if (event.process == seat->starts) handle(*seat, event);  // not of one that was replaced since
    if (starts_ != start) return;                             // all of them were
  }
}

// What holds whatever becomes of the process.
void Job::note(const Seat& seat, const Event& event) {
  if (event.completes()) {
    std::uint64_t& newest = complete_[event.get<std::uint64_t>("generation", 0)];
    newest = std::max(newest, event.step());
  } else if (event.what == "point" && event.get<std::string>("point", "") == "persisted") {
    persisted_[{static_cast<int>(seats_.size()), event.step()}][seat.rank] = disk_of(seat.rank);
  }
}

void Job::trace(const Seat& seat, const Event& event) {
  if (!trace_.is_open()) return;
  nlohmann::json line = event.line;
  line["reporter"] = seat.rank;
  line["process"] = seat.starts;
  trace_ << line.dump() << "\n";
}

void Job::handle(Seat& seat, const Event& event) {
  trace(seat, event);
  const std::string& what = event.what;
  if (event.joins()) seat.joined = true;
  if (what == "begin") {
    seat.begun = event.step();
    for (const char* idle : {"", "complete", "failed", "persisted", "pruned"}) {
      if (seat.point == idle) seat.doing = "training";  // nothing else is under way
    }
  } else if (what == "held") {
    seat.held = event.step();
  } else if (what == "trained") {
    seat.trained = event.step();
    seat.held = 0;
    result_.step_ms.push_back(event.get("ms", 0.0));
    if (seat.rank == 0) {
      progress_.step = seat.trained;
      progress_.loss = event.get("loss", 0.0);
      if (result_.first_loss == 0) result_.first_loss = progress_.loss;
      result_.final_loss = progress_.loss;
    }
  } else if (what == "point") {
    take_point(seat, event);
    progress_.generation =
        std::max(progress_.generation, event.get<std::uint64_t>("generation", 0));
  } else if (what == "staged") {
    progress_.stage_ms = event.get("stage_ms", 0.0);
    result_.stage_ms.push_back(progress_.stage_ms);
    if (event.get<std::string>("outcome", "") == "complete" && options_.arguments.ranks > 1) {
      progress_.replicate_ms = event.get("replicate_ms", 0.0);
      result_.replicate_ms.push_back(progress_.replicate_ms);
    }
    result_.vault_bytes =
        std::max(result_.vault_bytes, event.get<std::uint64_t>("vault_bytes", 0) *
                                          static_cast<std::uint64_t>(seats_.size()));
    // Each process counts from 0.
    const auto sent = event.get<std::uint64_t>("replica_bytes_sent", 0);
    const auto borrowed = event.get<std::uint64_t>("replica_bytes_borrowed", 0);
    result_.sent_bytes += sent - std::exchange(seat.sent_bytes, sent);
    result_.borrowed_bytes += borrowed - std::exchange(seat.borrowed_bytes, borrowed);
  } else if (what == "state") {
    result_.state_bytes = event.get<std::uint64_t>("bytes", 0);
  } else if (what == "recovered") {
    take_recovered(seat, event);
  } else if (what == "lost") {
    seat.recovered_generation = 0;
    seat.held = 0;
    seat.doing = "forming the next generation";
    take_lost({seat.rank, event.get("rank", -1), event.at, event.get<std::string>("error", ""),
               event.get<std::string>("why", "")});
  } else if (what == "dying" || what == "stopping") {
    fault_begins(seat, event);
  } else if (what == "finished") {
    seat.finished = true;
    seat.doing = "finished";
  } else if (what == "failed" || what == "fenced") {
    seat.failure = what + ": " + event.get<std::string>("why", "");
  }
}

void Job::take_recovered(Seat& seat, const Event& event) {
  seat.recovered_step = event.step();
  seat.recovered_generation = event.get<std::uint64_t>("generation", 0);
  seat.recovered_at = event.at;
  seat.source = event.get<std::string>("source", "");
  seat.from_rank = event.get("from", -1);
  seat.old_world = event.get("old_world", 0);
  seat.held = 0;
  progress_.generation = std::max(progress_.generation, seat.recovered_generation);
  seat.doing = "training";
  seat.point.clear();
  for (const char* what : {"threads", "descriptors"}) {
    seat.resources[what] = event.get<std::uint64_t>(what, 0);
  }
  seat.thread_names = event.get<std::string>("thread_names", "");
}

// A survivor says that somebody is lost: of all deaths that are not settled it means the one it
// names, else the first that it has not noticed yet.
void Job::take_lost(const Lost& lost) {
  const int reporter = lost.reporter;
  const std::int64_t at = lost.at;
  Death* other = nullptr;
  for (auto& death : result_.deaths) {
    if (death.settled || death.over || death.at > at || !death.fault.rank) continue;
    if (*death.fault.rank == reporter || death.noticed.contains(reporter)) continue;
    if (*death.fault.rank == lost.named) {
      death.noticed[reporter] = at;
      death.errors.insert(lost.error);
      death.misnamed.erase(reporter);
      return;
    }
    if (other == nullptr) other = &death;
  }
  if (other != nullptr) {
    other->noticed[reporter] = at;
    other->errors.insert(lost.error);
    other->misnamed[reporter] = lost.named;
    return;
  }
  const bool all_died = std::any_of(result_.deaths.begin(), result_.deaths.end(),
                                    [](const auto& d) { return !d.settled && !d.fault.rank; });
  if (!all_died) unexplained_.push_back(lost);
}

void Job::take_point(Seat& seat, const Event& event) {
  seat.point = event.get<std::string>("point", "");
  seat.doing = describe_point(seat.point, event.get<std::uint64_t>("chunk", 0),
                              event.get<std::uint64_t>("chunks", 0));
}

// The process said that it kills or stops itself now, and at which point. Until it is gone its
// other threads go on, and tell of later points.
void Job::fault_begins(Seat& seat, const Event& event) {
  const auto index = event.get<std::size_t>("fault", 0);
  if (index >= seat.given.size()) throw JobFailed("a rank reported a fault that it was not given");
  const Fault fault = seat.given[index];
  const auto pending = std::find(pending_.begin(), pending_.end(), fault);
  if (pending != pending_.end()) pending_.erase(pending);
  if (!event.get<std::string>("point", "").empty()) take_point(seat, event);

  Death death;
  death.fault = fault;
  death.ranks = static_cast<int>(seats_.size());
  death.step = seat.begun > 0 ? seat.begun : job_step();
  death.doing = seat.doing;
  death.point = seat.point;
  death.at = event.at;
  if (fault.of_all()) return all_go_down(seat, std::move(death));
  death.with_disk =
      fault.how == How::kLose && options_.disks.size() > 1 && seat.point != "finishing";
  if (seat.point == "finishing") {
    death.over = death.settled = true;
    death.recovered_step = options_.arguments.steps;
    death.source = "nothing";
  }
  death.old_processes = fault.how == How::kStop ? 1 : 0;
  const auto dies = [this](Seat& which, Death of) {
    of.fault.rank = which.rank;
    result_.deaths.push_back(std::move(of));
    which.recovered_generation = 0;
    which.death = result_.deaths.size();
  };
  for (const int rank : fault.with) {
    Seat& other = *seats_[static_cast<std::size_t>(rank)];
    if (!other.process || other.death > 0) continue;  // it is down already
    other.process->send_signal(SIGKILL);
    Death with = death;  // a kill: several ranks do not hang at once
    with.doing = other.doing;
    with.point = other.point;
    if (other.begun > 0) with.step = other.begun;
    dies(other, std::move(with));
  }
  dies(seat, std::move(death));
  // Some may have noticed before this line was read.
  const auto early = std::exchange(unexplained_, {});
  for (const auto& lost : early) take_lost(lost);
}

}  // namespace meshstage::tools::drill
