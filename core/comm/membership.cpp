#include <algorithm>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include <meshstage/core/comm/connect_ranks_impl.hpp>
#include <meshstage/core/comm/job_entries_impl.hpp>
#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

namespace {

using detail::kAbandoned;
using detail::kFormed;
using detail::leading_number;

/// What a rank that gives up still reads after its deadline, to say whom it waited for.
constexpr std::chrono::seconds kLastWords{2};

/// An error's text without the word for its kind, to build another error of.
std::string without_kind(const Error& e) {
  const std::string_view text = e.what();
  return std::string(text.substr(to_string(e.kind()).size() + 2));
}

/// A rank could not be reached. An attempt that ended because a rank left, or because a newer one
/// was begun, says nothing of why no attempt succeeds.
bool is_failed_connection(std::string_view why) {
  return why.starts_with(to_string(ErrorKind::kPeerLost));
}

}  // namespace

/// One call of form().
struct Membership::Forming {
  Deadline deadline;
  std::set<int> gave_up;  // ranks that came, and left at their own deadline
  std::uint64_t attempt = 0;
  std::string why;  // a rank could not be reached in that attempt, if it was so

  [[nodiscard]] std::string earlier_failure() const {
    return why.empty() ? ""
                       : "; generation " + std::to_string(attempt) + " could not be formed: " + why;
  }
  void note_failure(std::uint64_t number, const std::string& how, int world_size) {
    for (int r = 0; r < world_size; ++r) {
      if (how == detail::gave_up_text(r)) gave_up.insert(r);
    }
    if (!is_failed_connection(how)) return;
    attempt = number;
    why = how;
  }
};

Membership::Membership(MembershipOptions options, Deadline deadline)
    : options_(std::move(options)) {
  if (options_.job.empty()) throw InvalidArgument("a job needs a name");
  if (!options_.store || !options_.transport) {
    throw InvalidArgument("membership needs a store and a transport");
  }
  ConnectRequest check;
  check.rank = options_.rank;
  check.world_size = options_.world_size;
  check.peers = options_.data_peers;
  check_request(check);
  std::sort(options_.data_peers.begin(), options_.data_peers.end());
  incarnation_ =
      detail::register_incarnation(*options_.store, options_.job, options_.rank, deadline);
}

Membership::~Membership() = default;

std::string Membership::key(std::uint64_t generation, const std::string& what) const {
  return detail::generation_key(options_.job, generation, what);
}

std::string Membership::claim_text() const {
  return std::to_string(options_.world_size) +
         (options_.agreement.empty() ? "" : " " + options_.agreement);
}

std::string Membership::claim_key(std::uint64_t generation) const {
  return detail::claim_key(options_.job, generation);
}

bool Membership::is_replaced(Deadline deadline) {
  return detail::newest_incarnation(*options_.store, options_.job, options_.rank, deadline) >
         incarnation_;
}

void Membership::check_not_replaced(Deadline deadline) {
  if (!is_replaced(deadline)) return;
  throw make_error<InvalidState>("fenced: a newer process took the place of rank " +
                                     std::to_string(options_.rank) + "; this one must end",
                                 options_.rank);
}

std::uint64_t Membership::newest_generation(Deadline deadline) {
  return detail::newest_claim(*options_.store, options_.job, deadline);
}

void Membership::abandon_older(std::uint64_t number, Deadline deadline) {
  Store& store = *options_.store;
  const std::string prefix = options_.job + "/gen/";
  std::map<std::uint64_t, bool> decided;
  for (const auto& name : store.list(prefix, deadline)) {
    const std::uint64_t generation = leading_number(name.substr(prefix.size()));
    decided[generation] |= name == key(generation, "outcome");
  }
  for (const auto& [generation, is_decided] : decided) {
    if (generation >= number || is_decided) continue;
    store.compare_and_create(key(generation, "outcome"),
                             std::string(kAbandoned) + "a newer generation was claimed", deadline);
  }
}

std::optional<std::uint64_t> Membership::join_newest(std::uint64_t& seen, Deadline deadline) {
  Store& store = *options_.store;
  const std::string world = std::to_string(options_.world_size);
  const std::string claim = claim_text();
  const std::uint64_t newest = newest_generation(deadline);
  const auto outcome = newest == 0 ? std::optional<std::string>(kFormed)
                                   : store.get(key(newest, "outcome"), deadline);
  if (outcome || newest <= seen) {
    // Decided, or too low for what this rank has: who waits in it is to come along.
    if (!outcome) {
      store.compare_and_create(key(newest, "outcome"), std::string(kAbandoned) + "number too low",
                               deadline);
    }
    store.compare_and_create(claim_key(std::max(newest, seen) + 1), claim, deadline);
    return std::nullopt;
  }
  const std::string theirs = store.compare_and_create(claim_key(newest), claim, deadline);
  if (theirs != claim) {
    const std::string their_world = theirs.substr(0, theirs.find(' '));
    if (their_world != world) {
      throw InvalidState("job " + options_.job + " is formed by " + their_world +
                         " ranks, but this rank was started as one of " + world);
    }
    throw InvalidState("job " + options_.job + ": rank " + std::to_string(options_.rank) +
                       " was started with " + options_.agreement + ", others with " +
                       theirs.substr(std::min(theirs.size(), world.size() + 1)) +
                       "; give all ranks the same options");
  }
  // Whoever looked before this one was claimed may wait in an older one, where nobody comes any
  // more: what was claimed by then is in the list that is read from here on.
  abandon_older(newest, deadline);
  const std::string mine = std::to_string(incarnation_);
  const std::string place = detail::place_key(options_.job, newest, options_.rank);
  if (store.compare_and_create(place, mine, deadline) == mine) return newest;
  // By an older process of this rank, or by us in an attempt that failed: it will not come back.
  store.compare_and_create(key(newest, "outcome"),
                           std::string(kAbandoned) + "the place of rank " +
                               std::to_string(options_.rank) +
                               " was taken by a process that is gone",
                           deadline);
  seen = newest;
  return std::nullopt;
}

Generation Membership::form(std::uint64_t highest_seen, Deadline deadline) {
  if (highest_seen >= kLastGeneration) {
    throw InvalidState("an image of rank " + std::to_string(options_.rank) +
                       " says that it is of generation " + std::to_string(highest_seen) +
                       ", which no job reaches; remove the vault or the file that says so");
  }
  using std::chrono::milliseconds;
  constexpr milliseconds kLongestPause{1000};
  milliseconds pause{0};  // none after the first attempt that fails: a rank may just have died
  std::uint64_t seen = highest_seen;
  Forming forming{deadline, {}, 0, {}};
  while (true) {
    check_not_replaced(deadline);
    const auto number = join_newest(seen, deadline);
    if (!number) {
      if (!deadline.expired()) continue;
    } else {
      if (auto generation = connect(*number, forming)) return *generation;
      seen = *number;
      const Deadline next = Deadline::after(pause).earlier(deadline);
      std::this_thread::sleep_until(next.time());
      pause = std::clamp(pause * 2, milliseconds{10}, kLongestPause);
      if (!deadline.expired()) continue;
      throw_missing(seen, forming);
    }
    throw Timeout("no generation could be formed by the deadline" + forming.earlier_failure());
  }
}

void Membership::throw_missing(std::uint64_t number, const Forming& forming) {
  const Deadline deadline = Deadline::after(kLastWords);
  std::string missing;
  std::optional<int> first;
  for (int r = 0; r < options_.world_size; ++r) {
    if (forming.gave_up.contains(r)) continue;
    if (options_.store->get(detail::place_key(options_.job, number, r), deadline)) continue;
    missing += (missing.empty() ? "" : ", ") + std::to_string(r);
    if (!first) first = r;
  }
  if (!first) return;
  throw make_error<Timeout>("generation " + std::to_string(number) +
                                " was not formed by the deadline; these ranks did not come: " +
                                missing + forming.earlier_failure(),
                            first);
}

std::vector<int> Membership::absent(Deadline deadline) {
  const std::string places = key(newest_generation(deadline), "place/");
  std::set<std::string> there;
  for (const auto& k : options_.store->list(places, deadline)) {
    there.insert(k.substr(places.size()));
  }
  std::vector<int> missing;
  for (int r = 0; r < options_.world_size; ++r) {
    if (!there.contains(std::to_string(r))) missing.push_back(r);
  }
  return missing;
}

std::optional<Generation> Membership::connect(std::uint64_t number, Forming& forming) {
  detail::Attempted attempted;
  try {
    attempted = detail::connect_ranks(options_, number, claim_text(), forming.deadline);
  } catch (const Timeout& e) {
    const std::string last = forming.earlier_failure();
    throw_missing(number, forming);
    if (last.empty()) throw;
    throw make_error<Timeout>(without_kind(e) + last, e.rank());
  }
  if (!attempted.generation) {
    forming.note_failure(number, attempted.why, options_.world_size);
  } else if (options_.rank == 0) {
    remove_superseded(number, forming.deadline);
  }
  return attempted.generation;
}

void Membership::remove_superseded(std::uint64_t number, Deadline deadline) {
  // The one before stays: somebody may still ask for its cause.
  for (const std::string& prefix : {options_.job + "/gen/", options_.job + "/claim/"}) {
    for (const auto& k : options_.store->list(prefix, deadline)) {
      if (leading_number(k.substr(prefix.size())) + 1 < number) options_.store->remove(k, deadline);
    }
  }
}

DeathCause Membership::declare_death(std::uint64_t generation, int rank, const std::string& reason,
                                     Deadline deadline) {
  return detail::note_cause(*options_.store, options_.job, generation, {rank, reason}, deadline);
}

std::optional<DeathCause> Membership::cause_of(std::uint64_t generation, Deadline deadline) {
  const auto text = options_.store->get(cause_key(options_.job, generation), deadline);
  return text ? std::optional(decode_cause(*text)) : std::nullopt;
}

bool Membership::fenced(std::uint64_t generation, Deadline deadline) {
  if (is_replaced(deadline)) return true;
  const std::string generations = options_.job + "/gen/";
  for (const auto& k : options_.store->list(generations, deadline)) {
    const std::uint64_t number = leading_number(k.substr(generations.size()));
    if (number > generation && k.ends_with("/outcome") &&
        options_.store->get(k, deadline) == kFormed) {
      return true;
    }
  }
  return false;
}

}  // namespace meshstage
