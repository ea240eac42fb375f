#include <algorithm>
#include <ctime>
#include <exception>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include <meshstage/core/comm/connect_ranks_impl.hpp>
#include <meshstage/core/comm/job_entries_impl.hpp>
#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/comm/newcomer_impl.hpp>
#include <meshstage/core/comm/signs_of_life_impl.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/ranks_text.hpp>
#include <meshstage/core/os/process_watch.hpp>

namespace meshstage {

namespace {

using detail::kAbandoned;
using detail::kFormed;
using detail::leading_number;

/// So many failed attempts of one form() are said: reasons may differ by no more than a port.
constexpr int kMostTold = 10;
/// For what a rank still reads or writes after its deadline or at its end.
constexpr std::chrono::seconds kLastWords{2};

void check_generation(std::uint64_t highest_seen, int rank) {
  if (highest_seen < kLastGeneration) return;
  throw InvalidState("an image of rank " + std::to_string(rank) +
                     " says that it is of generation " + std::to_string(highest_seen) +
                     ", which no job reaches; remove the vault or the file that says so");
}

MembershipOptions sorted(MembershipOptions options) {
  std::sort(options.data_peers.begin(), options.data_peers.end());
  return options;
}

}  // namespace

/// One call of form().
struct Membership::Forming {
  Deadline deadline;
  std::set<int> gave_up;    // ranks that came, and left at their own deadline
  std::uint64_t tried = 0;  // the generation of the last attempt
  std::uint64_t attempt = 0;
  std::string why;  // a rank could not be reached, or could not wait, in that attempt
  int told = 0;     // failures that were said

  [[nodiscard]] std::string failure() const {
    return generation_text(attempt) + " could not be formed: " + why;
  }
  [[nodiscard]] std::string earlier_failure() const { return why.empty() ? "" : "; " + failure(); }
  void note_failure(std::uint64_t number, const std::string& how,
                    const MembershipOptions& options) {
    for (int r = 0; r < options.world_size; ++r) {
      if (how == detail::gave_up_text(r)) gave_up.insert(r);
    }
    if (!detail::is_a_fault(how)) return;
    const bool is_news = why != how && told < kMostTold;
    attempt = number;
    why = how;
    if (!is_news || !options.failed) return;
    ++told;
    options.failed(failure() + "; trying again");
  }
};

Membership::Membership(MembershipOptions options) : options_(sorted(std::move(options))) {
  if (options_.job.empty()) throw InvalidArgument("a job needs a name");
  if (!options_.store || !options_.transport) {
    throw InvalidArgument("membership needs a store and a transport");
  }
  if (options_.launch.find(' ') != std::string::npos) {
    throw InvalidArgument("launch \"" + options_.launch + "\": no spaces");
  }
  ConnectRequest check;
  check.rank = options_.rank;
  check.world_size = options_.world_size;
  check.peers = options_.data_peers;
  check_request(check);
  newcomer_ = std::make_unique<detail::Newcomer>(options_);
}

Membership::~Membership() {
  if (!origin_.is_here()) {
    (void)signs_.release();  // its thread is the parent's
    return;
  }
  signs_.reset();
  if (placed_ == 0) return;
  // So that nobody waits for a process that is gone.
  try {
    const Deadline last_words = Deadline::after(kLastWords);
    options_.store->set(detail::left_key(options_.job, placed_, options_.rank), {}, last_words);
    if (formed_) return;
    options_.store->compare_and_create(
        key(placed_, "outcome"),
        std::string(kAbandoned) + "rank " + std::to_string(options_.rank) + " ended", last_words);
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): no Store, or no memory
    // Others wait a little longer then.
  }
}

std::string Membership::key(std::uint64_t generation, const std::string& what) const {
  return detail::generation_key(options_.job, generation, what);
}

std::string Membership::claim_key(std::uint64_t generation) const {
  return detail::claim_key(options_.job, generation);
}

bool Membership::is_replaced(Deadline deadline) {
  return incarnation_ != 0 && detail::newest_incarnation(*options_.store, options_.job,
                                                         options_.rank, deadline) > incarnation_;
}

void Membership::check_not_replaced(Deadline deadline) {
  if (!is_replaced(deadline)) return;
  throw make_error<Fenced>("a newer process took the place of rank " +
                               std::to_string(options_.rank) + "; this one must end",
                           options_.rank);
}

std::uint64_t Membership::newest_generation(Deadline deadline) {
  return detail::newest_claim(*options_.store, options_.job, deadline);
}

void Membership::abandon_older(std::uint64_t number, Deadline deadline) {
  Store& store = *options_.store;
  std::map<std::uint64_t, bool> decided;
  // The claims, too: a rank on its way into one has no entry in it yet, and would wait there.
  for (const std::string& prefix : {options_.job + "/claim/", options_.job + "/gen/"}) {
    for (const auto& name : store.list(prefix, deadline)) {
      const std::uint64_t generation = leading_number(name.substr(prefix.size()));
      decided[generation] |= name == key(generation, "outcome");
    }
  }
  for (const auto& [generation, is_decided] : decided) {
    if (generation >= number || is_decided) continue;
    store.compare_and_create(key(generation, "outcome"),
                             std::string(kAbandoned) + "a newer generation was claimed", deadline);
  }
}

std::uint64_t Membership::next_number(std::uint64_t newest, std::uint64_t seen, Deadline deadline) {
  if (newest != 0 && seen <= newest) return newest + 1;
  const std::uint64_t above = std::max(newest, seen);
  std::uint64_t run = 0;
  // All ranks take the same numbers, whatever each of them has seen: the first to draw decides.
  do {
    const std::string drawn = std::to_string(draw_run(above));
    const std::string key = options_.job + "/run/" + std::to_string(run);
    const std::uint64_t next =
        leading_number(options_.store->compare_and_create(key, drawn, deadline));
    if (next < run || (next == run && run < above) || next >= kLastGeneration) {
      detail::throw_strange(key);
    }
    run = next;
  } while (run < above);
  return run + 1;
}

void Membership::claim_next(std::uint64_t newest, std::uint64_t seen, const detail::Claim& claim,
                            const std::string& why, Deadline deadline) {
  // Whoever waits in it is to come along, or to see that it is over. One that is decided stays so.
  if (newest != 0) {
    options_.store->compare_and_create(key(newest, "outcome"), std::string(kAbandoned) + why,
                                       deadline);
    // From here on nobody ends the job for good in it (see claim_the_end()).
    options_.store->compare_and_create(detail::end_key(options_.job, newest), detail::kSuperseded,
                                       deadline);
  }
  const std::uint64_t number = next_number(newest, seen, deadline);
  options_.store->compare_and_create(claim_key(number), claim.text(), deadline);
}

std::optional<std::uint64_t> Membership::join_newest(std::uint64_t& seen, Deadline deadline) {
  using launch::Admission;
  const std::uint64_t newest = newest_generation(deadline);
  launch::Comer comer;
  comer.launch = member_ ? launch_ : options_.launch;
  comer.world_size = options_.world_size;
  comer.agreement = options_.agreement;
  comer.member = member_;
  comer.take_over = options_.take_over;
  detail::Claim theirs;
  std::string text;
  std::optional<launch::View> view = launch::View();
  if (newest != 0) {
    const auto claim = options_.store->get(claim_key(newest), deadline);
    if (!claim) return std::nullopt;  // removed just now: a newer one is there
    text = *claim;
    theirs = detail::Claim::parse(text);
    view = newcomer_->look(newest, theirs, comer, deadline);
  }
  const Admission admission = view ? launch::admit(*view, comer) : Admission::kWatch;
  switch (admission) {
    case Admission::kWatch:
      newcomer_->wait(newest, theirs, deadline);
      return std::nullopt;
    case Admission::kTake:
      claim_next(newest, seen,
                 {options_.world_size,
                  options_.launch.empty() ? "?" + std::to_string(detail::random_number())
                                          : options_.launch,
                  0, options_.agreement},
                 "another start took the job", deadline);
      return std::nullopt;
    case Admission::kClaim:
      if (view->outcome == launch::View::Outcome::kFormed) theirs.last = newest;
      claim_next(newest, seen, theirs, "a newer generation was claimed", deadline);
      return std::nullopt;
    case Admission::kJoin:
      break;
    default:
      newcomer_->refuse(admission, newest, theirs, deadline);
  }
  if (newest <= seen) {
    claim_next(newest, seen, theirs, "number too low", deadline);
    return std::nullopt;
  }
  launch_ = theirs.launch;
  claim_ = text;
  return take_place(newest, theirs, seen, deadline);
}

std::optional<std::uint64_t> Membership::take_place(std::uint64_t number,
                                                    const detail::Claim& claim, std::uint64_t& seen,
                                                    Deadline deadline) {
  Store& store = *options_.store;
  // Whoever looked before this one was claimed may wait in an older one, where nobody comes any
  // more: what was claimed by then is in the list that is read from here on.
  abandon_older(number, deadline);
  const ProcessAddress self = own_process_address();
  const detail::Place mine{newcomer_->token(), self.boot, self.pid_namespace, self.pid,
                           self.start_time};
  const std::string place = detail::place_key(options_.job, number, options_.rank);
  if (store.compare_and_create(place, mine.text(), deadline) == mine.text() && placed_ != number) {
    placed_ = number;
    formed_ = false;
    if (incarnation_ == 0) {
      incarnation_ = detail::register_incarnation(store, options_.job, options_.rank, deadline);
    }
    if (!signs_) {
      signs_ = std::make_unique<detail::SignsOfLife>(
          options_.store, options_.job, options_.rank,
          detail::pause_between_signs(options_.patience, options_.world_size),
          options_.sign_of_life);
    }
    signs_->in(number, true);
    return number;
  }
  if (!newcomer_->seat_is_free(number, claim, false, deadline)) {
    newcomer_->wait(number, claim, deadline);  // another process was faster
    return std::nullopt;
  }
  // By an older process of this rank, or by us in an attempt that failed: it will not come back.
  store.compare_and_create(key(number, "outcome"),
                           std::string(kAbandoned) + "the place of rank " +
                               std::to_string(options_.rank) +
                               " was taken by a process that is gone",
                           deadline);
  seen = number;
  return std::nullopt;
}

std::uint64_t Membership::enter(std::uint64_t highest_seen, Deadline deadline) {
  check_generation(highest_seen, options_.rank);
  std::uint64_t seen = highest_seen;
  while (!entered_) {
    entered_ = join_newest(seen, deadline);
    if (!entered_ && deadline.expired()) {
      throw Timeout("this rank got no place in job " + options_.job + " by the deadline" +
                    newcomer_->waited_for());
    }
  }
  return *entered_;
}

Generation Membership::form(std::uint64_t highest_seen, Deadline deadline) {
  check_generation(highest_seen, options_.rank);
  if (signs_) signs_->in(placed_, true);
  Forming forming{deadline, {}, 0, 0, {}, 0};
  try {
    return form_in_attempts(highest_seen, forming);
  } catch (const Timeout& e) {
    // Wherever the deadline found this rank, in an attempt or between two.
    if (forming.tried != 0) throw_missing(forming.tried, forming);
    const std::string last = forming.earlier_failure();
    if (last.empty()) throw;
    throw make_error<Timeout>(e.message() + last, e.rank());
  }
}

Generation Membership::form_in_attempts(std::uint64_t seen, Forming& forming) {
  using std::chrono::milliseconds;
  constexpr milliseconds kLongestPause{1000};
  milliseconds pause{0};  // none after the first attempt that fails: a rank may just have died
  const Deadline deadline = forming.deadline;
  do {
    check_not_replaced(deadline);
    auto number = std::exchange(entered_, std::nullopt);
    if (!number || *number <= seen) number = join_newest(seen, deadline);
    if (!number) continue;
    if (auto generation = connect(*number, forming)) {
      member_ = formed_ = true;
      signs_->in(*number, false);
      return *generation;
    }
    seen = *number;
    const Deadline next = Deadline::after(pause).earlier(deadline);
    std::this_thread::sleep_until(next.time());
    pause = std::clamp(pause * 2, milliseconds{10}, kLongestPause);
  } while (!deadline.expired());
  throw Timeout("no generation could be formed by the deadline" + newcomer_->waited_for());
}

void Membership::throw_missing(std::uint64_t number, const Forming& forming) {
  const Deadline deadline = Deadline::after(kLastWords);
  std::vector<int> missing;
  for (int r = 0; r < options_.world_size; ++r) {
    if (forming.gave_up.contains(r)) continue;
    if (options_.store->get(detail::place_key(options_.job, number, r), deadline)) continue;
    missing.push_back(r);
  }
  if (missing.empty()) return;
  throw make_error<Timeout>(generation_text(number) +
                                " was not formed by the deadline; these ranks did not come: " +
                                ranks_text(missing) + forming.earlier_failure(),
                            missing.front());
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
  forming.tried = number;
  auto attempted = detail::connect_ranks(options_, number, claim_, forming.deadline);
  if (!attempted.generation) {
    forming.note_failure(number, attempted.why, options_);
  } else if (options_.rank == 0) {
    options_.store->set(key(number, "since"), utc_text(std::time(nullptr)), forming.deadline);
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
