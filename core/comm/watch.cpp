#include <unistd.h>

#include <algorithm>
#include <set>

#include <meshstage/core/comm/watch_impl.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/ranks_text.hpp>
#include <meshstage/core/os/process_watch.hpp>

namespace meshstage::detail {

namespace {

using Signs = launch::View::Signs;
using std::chrono::milliseconds;

/// A process that lives answers within so many pauses, whatever else its host does.
constexpr int kPausesToAnswer = 8;

/// Ranks that wait for a dead peer for an hour, or for ever, still answer a newcomer.
constexpr milliseconds kLongestPause{1000};

/// True only for what is known: processes on other hosts are never seen to be gone.
bool is_gone(const Place& place) {
  const ProcessAddress address{place.boot, place.pid_namespace, place.pid, place.start_time};
  const ProcessAddress own = own_process_address();
  if (address == own) return false;
  if (address.boot == own.boot && address.boot != 0 && address.pid_namespace == own.pid_namespace &&
      address.pid == own.pid) {
    return true;  // its number is this process's now
  }
  const ProcessWatch watch = watch_process(address);
  if (watch.descriptor >= 0) ::close(watch.descriptor);
  return watch.ended;
}

std::string list_of(const std::vector<int>& ranks) {
  return (ranks.size() == 1 ? "rank " : "ranks ") + ranks_text(ranks);
}

}  // namespace

milliseconds pause_between_signs(milliseconds patience, int world_size) {
  return std::max(
      {milliseconds(10), std::min(patience / 64, kLongestPause), milliseconds(2) * world_size});
}

Watch::Watch(std::shared_ptr<Store> store, std::string job, int rank, milliseconds patience)
    : store_(std::move(store)),
      job_(std::move(job)),
      rank_(rank),
      patience_(patience),
      token_(std::to_string(random_number())) {}

milliseconds Watch::pause(const Claim& claim) const {
  return pause_between_signs(patience_, claim.world);
}

Watch::Seen& Watch::look(std::uint64_t generation, int rank, Deadline deadline) {
  if (std::find(asked_.begin(), asked_.end(), generation) == asked_.end()) {
    asked_.push_back(generation);
  }
  const auto value = store_->get(alive_key(job_, generation, rank), deadline);
  const auto [at, first] = seen_.try_emplace({generation, rank});
  Seen& seen = at->second;
  const auto signs_of = [](const std::string& answer) {
    return answer.substr(std::min(answer.size(), answer.find(' ')));
  };
  if (first) {
    seen.answer = value.value_or("");
    seen.since = Clock::now();
  } else if (value && *value != seen.answer) {
    if (signs_of(*value) != signs_of(seen.answer)) ++seen.signs;
    ++seen.answers;
    seen.answer = *value;
    seen.since = Clock::now();
  }
  return seen;
}

Signs Watch::signs(std::uint64_t generation, const Claim& claim, bool formed, Deadline deadline) {
  std::vector<int> places;
  std::set<int> left;
  const std::string here = generation_key(job_, generation, "");
  for (const auto& key : store_->list(here, deadline)) {
    const std::string what = key.substr(here.size());
    const auto rank = [&](std::string_view kind) {
      return static_cast<int>(leading_number(what.substr(kind.size())));
    };
    if (what.starts_with("place/")) places.push_back(rank("place/"));
    if (what.starts_with("left/")) left.insert(rank("left/"));
  }
  const auto cause = store_->get(cause_key(job_, generation), deadline);
  if (cause && formed) left.insert(decode_cause(*cause).rank);
  std::vector<int> gone;
  std::vector<int> silent;
  std::vector<int> idle;  // their processes answered, and that is all
  std::size_t renewed = 0;
  const auto patience = std::max(patience_, pause(claim) * kPausesToAnswer);
  const auto said_nothing = [&](const Seen& seen) {
    return Deadline::at(seen.since).plus(patience).expired();
  };
  for (const int r : places) {
    const auto place = store_->get(place_key(job_, generation, r), deadline);
    if (left.contains(r) || !place || is_gone(Place::parse(*place))) {
      gone.push_back(r);
      continue;
    }
    const Seen& seen = look(generation, r, deadline);
    if (said_nothing(seen)) {
      silent.push_back(r);
    } else if (seen.signs >= 2) {
      ++renewed;
    } else if (seen.answers > 0) {
      idle.push_back(r);
    }
  }
  if (places.empty()) {  // whoever claimed it comes, or does not
    return said_nothing(look(generation, -1, deadline)) ? Signs::kLost : Signs::kUnknown;
  }
  text_.clear();
  const auto tell = [&](const std::vector<int>& ranks, const char* what) {
    if (!ranks.empty()) text_ += (text_.empty() ? "" : "; ") + list_of(ranks) + what;
  };
  tell(gone, " ended");
  tell(silent, " did not answer");
  tell(idle, " answered, but their trainers did nothing");
  const std::size_t answered = renewed + idle.size();
  if (!formed) {
    if (gone.size() + silent.size() == places.size()) return Signs::kLost;
    return answered > 0 ? Signs::kAlive : Signs::kUnknown;
  }
  if (gone.size() == places.size() || !silent.empty()) return Signs::kLost;
  if (!gone.empty()) return answered > 0 ? Signs::kBroken : Signs::kUnknown;
  return renewed == places.size() ? Signs::kAlive : Signs::kUnknown;
}

bool Watch::seat_is_free(std::uint64_t generation, const Place& holder, const Claim& claim,
                         bool formed, Deadline deadline) {
  if (is_gone(holder)) return true;
  if (store_->get(left_key(job_, generation, rank_), deadline)) return true;
  const auto cause = store_->get(cause_key(job_, generation), deadline);
  if (cause && decode_cause(*cause).rank == rank_) return true;
  // It may have died together with the one that was named, and be on another host. While its launch
  // forms anew, which says that somebody died, nobody waits for it longer than it takes to answer.
  const milliseconds to_answer = pause(claim) * kPausesToAnswer;
  return Deadline::at(look(generation, rank_, deadline).since)
      .plus(formed ? std::max(patience_, to_answer) : to_answer)
      .expired();
}

void Watch::wait(const std::vector<std::string>& keys, const Claim& claim, Deadline deadline) {
  for (const std::uint64_t generation : asked_) {
    store_->set(generation_key(job_, generation, "asked"),
                token_ + " " + std::to_string(++questions_), deadline);
  }
  try {
    (void)store_->wait_for_any(keys, Deadline::after(pause(claim)).earlier(deadline));
  } catch (const Timeout&) {
    // Nothing happened: look at the answers.
  }
}

}  // namespace meshstage::detail
