#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <random>
#include <set>
#include <stop_token>
#include <thread>
#include <utility>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/comm/named_losses_impl.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/rank_tree.hpp>

namespace meshstage {

namespace {

constexpr char kFormed[] = "formed";
constexpr std::size_t kDigits = 20;
constexpr std::string_view kAbandoned = "abandoned: ";
/// What a rank that gives up still writes after its deadline, so that nobody waits for it.
constexpr std::chrono::seconds kLastWords{2};
constexpr std::byte kReady{'R'};  // child to parent: all below and I are connected
constexpr std::byte kGo{'G'};     // parent to child: the generation is formed

std::string twenty_digits(std::uint64_t number) {
  std::string digits = std::to_string(number);
  return std::string(kDigits - digits.size(), '0') + digits;
}

/// The number that `text` begins with; 0 if none.
std::uint64_t leading_number(std::string_view text) {
  std::uint64_t number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

std::string place_of(int rank) { return "place/" + std::to_string(rank); }

/// An error's text without the word for its kind, to build another error of.
std::string without_kind(const Error& e) {
  const std::string_view text = e.what();
  return std::string(text.substr(to_string(e.kind()).size() + 2));
}

std::string gave_up_text(int rank) {
  return "rank " + std::to_string(rank) + " waited until its deadline";
}
/// A rank could not be reached. An attempt that ended because a rank left, or because a newer one
/// was begun, says nothing of why no attempt succeeds.
bool is_failed_connection(std::string_view why) {
  return why.starts_with(to_string(ErrorKind::kPeerLost));
}

std::vector<int> merged(std::vector<int> a, const std::vector<int>& b) {
  a.insert(a.end(), b.begin(), b.end());
  std::sort(a.begin(), a.end());
  a.erase(std::unique(a.begin(), a.end()), a.end());
  return a;
}

/// The first cause stays; returns the one that is there.
DeathCause note_cause(Store& store, const std::string& key, int rank, const std::string& reason,
                      Deadline deadline) {
  return decode_cause(store.compare_and_create(key, encode_cause({rank, reason}), deadline));
}

/// The Store as a transport sees it while it connects: remembers the addresses that it publishes.
class PublishedIn final : public Store {
 public:
  explicit PublishedIn(Store& inner) : inner_(inner) {}

  void set(const std::string& key, std::string_view value, Deadline deadline) override {
    published_.push_back(key);
    inner_.set(key, value, deadline);
  }
  std::optional<std::string> get(const std::string& key, Deadline deadline) override {
    return inner_.get(key, deadline);
  }
  std::string compare_and_create(const std::string& key, std::string_view value,
                                 Deadline deadline) override {
    published_.push_back(key);
    return inner_.compare_and_create(key, value, deadline);
  }
  std::vector<std::string> list(const std::string& prefix, Deadline deadline) override {
    return inner_.list(prefix, deadline);
  }
  void remove(const std::string& key, Deadline deadline) override { inner_.remove(key, deadline); }
  std::string wait_for_any(std::span<const std::string> keys, Deadline deadline,
                           std::stop_token stop) override {
    return inner_.wait_for_any(keys, deadline, std::move(stop));
  }
  void wait_reachable(Deadline deadline, std::stop_token stop,
                      const Unanswered& unanswered) override {
    inner_.wait_reachable(deadline, std::move(stop), unanswered);
  }

  void remove_published(Deadline deadline) {
    for (const auto& key : std::exchange(published_, {})) inner_.remove(key, deadline);
  }

 private:
  Store& inner_;
  std::vector<std::string> published_;
};

}  // namespace

std::string describe(const DeathCause& cause) {
  if (cause.rank < 0) return cause.reason;
  return "rank " + std::to_string(cause.rank) + " " + cause.reason;
}

namespace {

std::string claims_of(const std::string& job) { return job + "/claim/"; }

/// 0 if nobody ever claimed one.
std::uint64_t newest_claim(Store& store, const std::string& job, Deadline deadline) {
  const std::string prefix = claims_of(job);
  const auto keys = store.list(prefix, deadline);
  if (keys.empty()) return 0;
  const std::string name = keys.back().substr(prefix.size());
  const std::uint64_t newest = leading_number(name);
  // Also what is no number at all, or is too long for one.
  if (newest == 0 || newest > Membership::kLastGeneration || name != twenty_digits(newest)) {
    throw InvalidState("the store has an entry \"" + keys.back() +
                       "\", which no rank has written; remove it");
  }
  return newest;
}

}  // namespace

std::uint64_t look_for_newest(Store& store, const std::string& job, const Generation& generation,
                              Deadline deadline) {
  store.compare_and_create(claims_of(job) + twenty_digits(generation.number), generation.claim,
                           deadline);
  return newest_claim(store, job, deadline);
}

std::string cause_key(const std::string& job, std::uint64_t generation) {
  return job + "/gen/" + twenty_digits(generation) + "/cause";
}

std::string encode_cause(const DeathCause& cause) {
  return std::to_string(cause.rank) + " " + cause.reason;
}

DeathCause decode_cause(const std::string& text) {
  const auto space = text.find(' ');
  DeathCause cause;
  cause.rank = text.starts_with('-') ? -1 : static_cast<int>(leading_number(text));
  if (space != std::string::npos) cause.reason = text.substr(space + 1);
  return cause;
}

void Generation::abort(std::exception_ptr cause) const noexcept {
  if (data) data->abort(cause);
  if (training) training->abort(cause);
}

void Generation::close() const noexcept {
  if (links) links->close();
  if (data) data->close();
  if (training) training->close();
}

/// One generation on its way: what the links and the Store say while this rank connects.
struct Membership::Attempt {
  Attempt(Store& store, const std::string& outcome_key)
      : watcher([this, &store, outcome_key](const std::stop_token& done) {
          try {
            const std::string outcome = store.wait_for(outcome_key, Deadline::never(), done);
            if (outcome != kFormed) fail(outcome);
          } catch (const Cancelled&) {
            // This rank is through.
          } catch (const std::exception& e) {
            fail(e.what());
          }
        }) {}
  Attempt(const Attempt&) = delete;
  Attempt& operator=(const Attempt&) = delete;
  ~Attempt() {
    if (links) links->set_handlers({});
  }

  void fail(const std::string& why) {
    {
      const MutexLock lock(mutex);
      if (failure.empty()) failure = why;
    }
    stop.request_stop();
  }
  [[nodiscard]] std::string failed() {
    const MutexLock lock(mutex);
    return failure;
  }

  /// From now on the links tell us; until "go" has come, then they keep things for their user.
  void listen(const std::shared_ptr<ControlLinks>& to) {
    links = to.get();
    ControlHandlers handlers;
    // A peer that has heard "go" before us may say more than that: it is for whoever comes next.
    handlers.takes = [](int /*peer*/, std::span<const std::byte> message) {
      return message.size() == 1 && (message[0] == kReady || message[0] == kGo);
    };
    handlers.on_message = [this](int peer, std::span<const std::byte> message) {
      // No later message is ours.
      if (message[0] == kGo) links->set_handlers({});
      const MutexLock lock(mutex);
      if (message[0] == kReady) ready.insert(peer);
      if (message[0] == kGo) go = true;
      changed.notify_all();
    };
    handlers.on_lost = [this](int peer, LostReason reason, const std::string& detail) {
      fail("rank " + std::to_string(peer) + " went away while forming (" +
           std::string(to_string(reason)) + ": " + detail + ")");
    };
    links->set_handlers(std::move(handlers));
  }

  /// Waits until so many children are ready. Throws Cancelled if the attempt failed, Timeout.
  void wait_for_children(std::size_t count, Deadline deadline) {
    MutexLock lock(mutex);
    const auto token = stop.get_token();
    check(token, changed.wait_until(lock, token, deadline, [&]() MESHSTAGE_REQUIRES(mutex) {
      return ready.size() == count;
    }));
  }
  /// The same for the parent's "go".
  void wait_for_go(Deadline deadline) {
    MutexLock lock(mutex);
    const auto token = stop.get_token();
    check(token, changed.wait_until(lock, token, deadline,
                                    [this]() MESHSTAGE_REQUIRES(mutex) { return go; }));
  }
  static void check(const std::stop_token& token, bool there) {
    if (there) return;
    if (token.stop_requested()) throw Cancelled("the generation was abandoned");
    throw Timeout("the ranks did not agree on the generation by the deadline");
  }

  Mutex mutex;
  CondVar changed;
  std::stop_source stop;
  std::string failure MESHSTAGE_GUARDED_BY(mutex);
  std::set<int> ready MESHSTAGE_GUARDED_BY(mutex);
  bool go MESHSTAGE_GUARDED_BY(mutex) = false;
  ControlLinks* links = nullptr;
  std::jthread watcher;  // last: it ends before what it uses
};

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

  std::random_device random;
  const std::string token = std::to_string(std::uint64_t{random()} << 32 | random());
  const std::string prefix = options_.job + "/incarnation/" + std::to_string(options_.rank) + "/";
  std::vector<std::string> older;
  do {
    older = options_.store->list(prefix, deadline);
    incarnation_ = older.empty() ? 1 : leading_number(older.back().substr(prefix.size())) + 1;
    if (incarnation_ > kLastGeneration) {
      throw InvalidState("the store has an entry \"" + older.back() +
                         "\", which no rank has written; remove it");
    }
  } while (options_.store->compare_and_create(prefix + twenty_digits(incarnation_), token,
                                              deadline) != token);
  for (const auto& key : older) options_.store->remove(key, deadline);
}

Membership::~Membership() = default;

std::string Membership::key(std::uint64_t generation, const std::string& what) const {
  return options_.job + "/gen/" + twenty_digits(generation) + "/" + what;
}

std::string Membership::claim_text() const {
  return std::to_string(options_.world_size) +
         (options_.agreement.empty() ? "" : " " + options_.agreement);
}

std::string Membership::claim_key(std::uint64_t generation) const {
  return claims_of(options_.job) + twenty_digits(generation);
}

void Membership::check_not_replaced(Deadline deadline) {
  const std::string prefix = options_.job + "/incarnation/" + std::to_string(options_.rank) + "/";
  const auto all = options_.store->list(prefix, deadline);
  if (all.empty() || leading_number(all.back().substr(prefix.size())) <= incarnation_) return;
  throw make_error<InvalidState>("fenced: a newer process took the place of rank " +
                                     std::to_string(options_.rank) + "; this one must end",
                                 options_.rank);
}

std::uint64_t Membership::newest_generation(Deadline deadline) {
  return newest_claim(*options_.store, options_.job, deadline);
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
  const std::string place = place_of(options_.rank);
  if (store.compare_and_create(key(newest, place), mine, deadline) == mine) return newest;
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
    if (options_.store->get(key(number, place_of(r)), deadline)) continue;
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
  Store& store = *options_.store;
  PublishedIn published(store);
  const Deadline deadline = forming.deadline;
  const int rank = options_.rank;
  const int world = options_.world_size;
  const auto up = tree::parent(rank);
  const auto children = tree::children(rank, world);
  const auto tree_links = tree::neighbours(rank, world);

  ConnectRequest request;
  request.job = options_.job;
  request.generation = number;
  request.rank = rank;
  request.world_size = world;
  request.store_prefix = key(number, "net");

  Generation result;
  result.number = number;
  result.claim = claim_text();
  result.rank = rank;
  result.world_size = world;
  const auto abandon = [&](const std::string& why) {
    const Deadline last_words = Deadline::after(kLastWords);
    store.compare_and_create(key(number, "outcome"), std::string(kAbandoned) + why, last_words);
    result.close();
    published.remove_published(last_words);
    if (!is_failed_connection(why)) return;
    forming.attempt = number;
    forming.why = why;
  };
  Attempt attempt(store, key(number, "outcome"));
  const auto token = attempt.stop.get_token();
  try {
    request.name = "links";
    request.peers = merged(tree_links, options_.data_peers);
    result.links = options_.transport->connect_links(request, published, deadline, token);
    attempt.listen(result.links);
    request.name = "data";
    request.peers = options_.data_peers;
    result.data = options_.transport->connect_group(request, published, deadline, token);
    request.name = "train";
    request.peers = tree_links;
    if (options_.training_links == TrainingLinks::kAll) {
      request.peers.clear();
      for (int r = 0; r < world; ++r) {
        if (r != rank) request.peers.push_back(r);
      }
    }
    result.training = detail::with_named_losses(
        options_.transport->connect_group(request, published, deadline, token),
        [store = options_.store, k = cause_key(options_.job, number)](
            int lost, const std::string& reason, Deadline by) {
          return note_cause(*store, k, lost, reason, by);
        });

    // Up the tree: all connected. At the root: formed, for all to see. Down the tree: go.
    attempt.wait_for_children(children.size(), deadline);
    if (up) {
      result.links->send(*up, std::span(&kReady, 1));
      attempt.wait_for_go(deadline);
    } else {
      result.links->set_handlers({});  // what children send after "go" is their user's
      if (!attempt.failed().empty()) throw Cancelled("the generation was abandoned");
      const std::string outcome =
          store.compare_and_create(key(number, "outcome"), kFormed, deadline);
      if (outcome != kFormed) throw Cancelled(outcome);
    }
    for (const int child : children) result.links->send(child, std::span(&kGo, 1));
  } catch (const Timeout& e) {
    const std::string last = forming.earlier_failure();
    abandon(gave_up_text(rank));
    throw_missing(number, forming);
    if (last.empty()) throw;
    throw make_error<Timeout>(without_kind(e) + last, e.rank());
  } catch (const PeerLost& e) {
    abandon(e.what());
    return std::nullopt;
  } catch (const Cancelled&) {
    std::string why = attempt.failed();
    if (why.starts_with(kAbandoned)) why.erase(0, kAbandoned.size());  // another rank said so
    abandon(why);
    for (int r = 0; r < world; ++r) {
      if (why == gave_up_text(r)) forming.gave_up.insert(r);
    }
    return std::nullopt;
  } catch (const Error& e) {
    abandon(e.what());
    throw;
  }
  if (rank == 0) remove_superseded(number, deadline);
  return result;
}

void Membership::remove_superseded(std::uint64_t number, Deadline deadline) {
  // The one before stays: somebody may still ask for its cause.
  for (const std::string& prefix : {options_.job + "/gen/", claims_of(options_.job)}) {
    for (const auto& k : options_.store->list(prefix, deadline)) {
      if (leading_number(k.substr(prefix.size())) + 1 < number) options_.store->remove(k, deadline);
    }
  }
}

DeathCause Membership::declare_death(std::uint64_t generation, int rank, const std::string& reason,
                                     Deadline deadline) {
  return note_cause(*options_.store, cause_key(options_.job, generation), rank, reason, deadline);
}

std::optional<DeathCause> Membership::cause_of(std::uint64_t generation, Deadline deadline) {
  const auto text = options_.store->get(cause_key(options_.job, generation), deadline);
  return text ? std::optional(decode_cause(*text)) : std::nullopt;
}

bool Membership::fenced(std::uint64_t generation, Deadline deadline) {
  const std::string prefix = options_.job + "/incarnation/" + std::to_string(options_.rank) + "/";
  const auto own = options_.store->list(prefix, deadline);
  if (!own.empty() && leading_number(own.back().substr(prefix.size())) > incarnation_) return true;
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
