#include "tools/run/hangs.hpp"

#include <algorithm>
#include <utility>

namespace meshstage::tools::run {
namespace {

std::string seconds_of(Hangs::Time time) {
  return std::to_string(std::chrono::round<std::chrono::seconds>(time).count()) + " s";
}

}  // namespace

Hangs::Hangs(int ranks, int first_rank, HangRules rules)
    : first_rank_(first_rank), rules_(rules), seats_(static_cast<std::size_t>(ranks)) {}

void Hangs::started(int rank) {
  Seat& seat = seats_.at(static_cast<std::size_t>(rank));
  Seat fresh;
  fresh.old_tokens = std::move(seat.old_tokens);
  fresh.old_tokens.merge(seat.tokens);
  seat = std::move(fresh);
}

void Hangs::reported(int rank, Kind kind, std::uint64_t token, Time now) {
  Seat& seat = seats_.at(static_cast<std::size_t>(rank));
  if (kind == Kind::kJoined || seat.old_tokens.contains(token)) return;
  seat.tokens.insert(token);
  const bool forms = kind == Kind::kForming;
  if (!forms && (seat.forming || !seat.heard)) seat.away = now;
  if (!forms || !is_fresh(seat, now)) seat.forming.reset();
  if (forms && !seat.forming) seat.forming = now;
  seat.heard.reset();
  if (kind != Kind::kLeft) seat.heard = now;
}

bool Hangs::is_fresh(const Seat& seat, Time now) const {
  return seat.heard && now - *seat.heard < kFresh;
}

std::optional<Hang> Hangs::look(Time now) {
  if (!looked_ || now - *looked_ > kLongestPause) watching_ = now;
  looked_ = now;
  std::optional<Time> waiting;  // since then one that lives has waited
  std::string waits;
  for (const Seat& seat : seats_) {
    if (!seat.forming || !is_fresh(seat, now)) continue;
    waiting = std::min(waiting.value_or(*seat.forming), *seat.forming);
    const auto rank = static_cast<int>(&seat - seats_.data());
    waits += (waits.empty() ? "" : ", ") + std::to_string(first_rank_ + rank);
  }
  if (!waiting) return std::nullopt;
  waits = (waits.find(',') == std::string::npos ? " while rank " : " while ranks ") + waits +
          " waited for it";
  for (const Seat& seat : seats_) {
    if (!seat.heard) continue;
    const auto rank = static_cast<int>(&seat - seats_.data());
    const Time silent = now - std::max({*seat.heard, *waiting, watching_});
    if (rules_.silent && !is_fresh(seat, now) && silent >= *rules_.silent) {
      return Hang{rank, "no sign of life for " + seconds_of(now - *seat.heard) + waits};
    }
    const Time away = now - std::max({seat.away, *waiting, watching_});
    if (rules_.away && is_fresh(seat, now) && !seat.forming && away >= *rules_.away) {
      return Hang{rank,
                  "its process lives, but its trainer was away for " + seconds_of(away) + waits};
    }
  }
  return std::nullopt;
}

}  // namespace meshstage::tools::run
