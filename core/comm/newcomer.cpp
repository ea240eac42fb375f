#include <utility>
#include <vector>

#include <meshstage/core/comm/newcomer_impl.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/generation/number.hpp>

namespace meshstage::detail {

namespace {

constexpr char kForce[] =
    "end them, or take the job over (CheckpointerOptions::take_over, MESHSTAGE_TAKE_OVER=1)";

}  // namespace

Newcomer::Newcomer(const MembershipOptions& options)
    : options_(options),
      token_(random_number()),
      watch_(options.store, options.job, options.rank, options.patience) {}

Newcomer::Clock::duration Newcomer::watched(std::uint64_t number) const {
  const auto first = first_look_.find(number);
  return first == first_look_.end() ? Clock::duration() : Clock::now() - first->second;
}

bool Newcomer::seat_is_free(std::uint64_t number, const Claim& claim, bool formed,
                            Deadline deadline) {
  Store& store = *options_.store;
  // Of this generation, else of the one that the launch formed last.
  std::uint64_t in = number;
  auto holder = store.get(place_key(options_.job, in, options_.rank), deadline);
  if (!holder && claim.last != 0) {
    in = claim.last;
    holder = store.get(place_key(options_.job, in, options_.rank), deadline);
  }
  if (!holder) return true;
  const Place place = Place::parse(*holder);
  return place.token == token_ || watch_.seat_is_free(in, place, claim, formed, deadline);
}

std::optional<launch::View> Newcomer::look(std::uint64_t number, const Claim& claim,
                                           const launch::Comer& comer, Deadline deadline) {
  using Outcome = launch::View::Outcome;
  Store& store = *options_.store;
  launch::View view;
  view.exists = true;
  view.launch = claim.launch;
  view.world_size = claim.world;
  view.agreement = claim.agreement;
  view.worked = claim.last != 0;
  const auto outcome = store.get(generation_key(options_.job, number, "outcome"), deadline);
  if (outcome) view.outcome = *outcome == kFormed ? Outcome::kFormed : Outcome::kAbandoned;
  if (comer.member) return view;
  first_look_.try_emplace(number, Clock::now());
  view.seat_free = seat_is_free(number, claim, view.outcome == Outcome::kFormed, deadline);
  if (!launch::signs_matter(view, comer)) return view;
  // Rank 0 asks all ranks first. The others give it the time for it: it may take the job.
  if (options_.rank != 0 && watched(number) < std::chrono::milliseconds(2) * claim.world) {
    return std::nullopt;
  }
  view.signs = watch_.signs(number, claim, view.outcome == Outcome::kFormed, deadline);
  return view;
}

void Newcomer::wait(std::uint64_t number, const Claim& claim, Deadline deadline) {
  Store& store = *options_.store;
  std::vector<std::string> keys{claim_key(options_.job, number + 1)};
  // Only what is not there yet.
  std::vector<std::string> news{generation_key(options_.job, number, "outcome"),
                                cause_key(options_.job, number)};
  for (auto& key : news) {
    if (!store.get(key, deadline)) keys.push_back(std::move(key));
  }
  waited_for_ = "; " + generation_text(number) + " of " + name_of_start(claim) +
                " has the job, and it is not clear whether its " + std::to_string(claim.world) +
                " ranks are alive";
  if (!watch_.text().empty()) waited_for_ += " (" + watch_.text() + ")";
  waited_for_ += std::string(": ") + kForce;
  if (!told_ && options_.waits && watched(number) > std::chrono::seconds(1)) {
    told_ = true;
    options_.waits("waiting" + waited_for_);
  }
  watch_.wait(keys, claim, deadline);
}

std::string Newcomer::waited_for() const { return waited_for_; }

void Newcomer::refuse(launch::Admission why, std::uint64_t number, const Claim& theirs,
                      Deadline deadline) {
  using launch::Admission;
  const std::string job = "job " + options_.job;
  switch (why) {
    case Admission::kOtherWorld:
      throw InvalidState(job + " is formed by " + std::to_string(theirs.world) +
                         " ranks, but this rank was started as one of " +
                         std::to_string(options_.world_size));
    case Admission::kOtherOptions:
      throw InvalidState(job + ": rank " + std::to_string(options_.rank) + " was started with " +
                         options_.agreement + ", others with " + theirs.agreement +
                         "; give all ranks the same options");
    case Admission::kFenced:
      throw make_error<Fenced>(name_of_start(theirs) + " owns " + job + " since " +
                                   generation_text(number) + "; this process must end",
                               options_.rank);
    default:
      break;
  }
  const auto since = options_.store->get(generation_key(options_.job, number, "since"), deadline);
  throw InvalidState(job + " is running: all " + std::to_string(theirs.world) + " ranks of " +
                     name_of_start(theirs) + " are alive, in " + generation_text(number) +
                     (since ? " since " + *since : "") +
                     ". This start is refused, and touched nothing; " + kForce);
}

}  // namespace meshstage::detail
