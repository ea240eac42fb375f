#include "tools/run/supervision.hpp"

#include <algorithm>

namespace meshstage::tools::run {

Supervision::Supervision(SupervisionRules rules)
    : rules_(rules), seats_(static_cast<std::size_t>(rules.ranks)) {}

void Supervision::started(int rank, Time now) {
  Seat& seat = seats_.at(static_cast<std::size_t>(rank));
  seat.started = now;
  seat.joined = false;
  seat.finished = false;
}

void Supervision::joined(int rank) {
  Seat& seat = seats_.at(static_cast<std::size_t>(rank));
  seat.joined = true;
  seat.early_deaths = 0;
}

void Supervision::all_ended() {
  for (Seat& seat : seats_) seat.finished = false;
}

Decision Supervision::ended(int rank, End end, Time now, const std::string& how) {
  Seat& seat = seats_.at(static_cast<std::size_t>(rank));
  Decision decision{.rank = rank, .why = "rank " + std::to_string(rank) + ": " + how};
  if (!end.signalled && end.code == 0) {
    seat.finished = true;
    const bool done =
        std::all_of(seats_.begin(), seats_.end(), [](const Seat& s) { return s.finished; });
    decision.kind = done ? Decision::Kind::kDone : Decision::Kind::kNothing;
    return decision;
  }
  const auto fail = [&](const std::string& because) {
    decision.kind = Decision::Kind::kFail;
    decision.why += because;
    decision.exit_status = end.exit_status();
    return decision;
  };
  const bool asks_for_all = !end.signalled && end.code == kRestartAllStatus;
  const bool all = rules_.policy == RestartPolicy::kAll || asks_for_all;
  if (!all && std::any_of(seats_.begin(), seats_.end(), [](const Seat& s) { return s.finished; })) {
    return fail(" after another rank had ended with 0, so there is no job to join any more");
  }
  if (!seat.joined && now - seat.started < rules_.settled) {
    ++seat.early_deaths;
  } else {
    seat.early_deaths = 0;
  }
  if (seat.early_deaths >= rules_.early_deaths) {
    return fail(", " + std::to_string(seat.early_deaths) +
                " times in a row before it joined the job");
  }
  if (rules_.max_restarts && restarts_ >= *rules_.max_restarts) {
    return fail(*rules_.max_restarts == 0 ? ", and no restart is allowed (--max-restarts 0)"
                                          : ", and all " + std::to_string(*rules_.max_restarts) +
                                                " restarts are used up (--max-restarts)");
  }
  ++restarts_;
  if (seat.early_deaths > 0) {
    const auto doubled = rules_.first_backoff * (std::int64_t{1} << (seat.early_deaths - 1));
    decision.delay = std::min<std::chrono::milliseconds>(doubled, rules_.longest_backoff);
  }
  decision.kind = all ? Decision::Kind::kRestartAll : Decision::Kind::kRestart;
  if (asks_for_all) decision.why += ", which asks for a restart of all ranks";
  return decision;
}

}  // namespace meshstage::tools::run
