#include <algorithm>
#include <array>
#include <charconv>
#include <condition_variable>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <stop_token>
#include <thread>
#include <utility>

#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/comm/named_losses_impl.hpp>
#include <meshstage/core/comm/tree.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

namespace {

constexpr char kFormed[] = "formed";
constexpr std::size_t kDigits = 20;
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

std::string gave_up_text(int rank) {
  return "rank " + std::to_string(rank) + " waited until its deadline";
}

std::vector<int> merged(std::vector<int> a, const std::vector<int>& b) {
  a.insert(a.end(), b.begin(), b.end());
  std::sort(a.begin(), a.end());
  a.erase(std::unique(a.begin(), a.end()), a.end());
  return a;
}

DeathCause parse_cause(const std::string& text) {
  const auto space = text.find(' ');
  DeathCause cause;
  cause.rank = text.starts_with('-') ? -1 : static_cast<int>(leading_number(text));
  if (space != std::string::npos) cause.reason = text.substr(space + 1);
  return cause;
}

/// The first cause stays; returns the one that is there.
DeathCause note_cause(Store& store, const std::string& key, int rank, const std::string& reason) {
  return parse_cause(store.compare_and_create(key, std::to_string(rank) + " " + reason));
}

}  // namespace

std::string describe(const DeathCause& cause) {
  if (cause.rank < 0) return cause.reason;
  return "rank " + std::to_string(cause.rank) + " " + cause.reason;
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
          } catch (const Error& e) {
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
      const std::lock_guard lock(mutex);
      if (failure.empty()) failure = why;
    }
    stop.request_stop();
  }
  [[nodiscard]] std::string failed() {
    const std::lock_guard lock(mutex);
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
      const std::lock_guard lock(mutex);
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

  /// Waits for `condition`, under the mutex. Throws Cancelled if the attempt failed, Timeout.
  template <class F>
  void wait(Deadline deadline, F&& condition) {
    std::unique_lock lock(mutex);
    const auto token = stop.get_token();
    if (deadline.is_never()) {
      changed.wait(lock, token, condition);
    } else {
      changed.wait_until(lock, token, deadline.time(), condition);
    }
    if (condition()) return;
    if (token.stop_requested()) throw Cancelled("the generation was abandoned");
    throw Timeout("the ranks did not agree on the generation by the deadline");
  }

  std::mutex mutex;
  std::condition_variable_any changed;
  std::stop_source stop;
  std::string failure;
  std::set<int> ready;
  bool go = false;
  ControlLinks* links = nullptr;
  std::jthread watcher;  // last: it ends before what it uses
};

Membership::Membership(MembershipOptions options) : options_(std::move(options)) {
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
    older = options_.store->list(prefix);
    incarnation_ = older.empty() ? 1 : leading_number(older.back().substr(prefix.size())) + 1;
  } while (options_.store->compare_and_create(prefix + twenty_digits(incarnation_), token) !=
           token);
  for (const auto& key : older) options_.store->remove(key);
}

Membership::~Membership() = default;

std::string Membership::key(std::uint64_t generation, const std::string& what) const {
  return options_.job + "/gen/" + twenty_digits(generation) + "/" + what;
}

void Membership::check_not_replaced() {
  const std::string prefix = options_.job + "/incarnation/" + std::to_string(options_.rank) + "/";
  const auto all = options_.store->list(prefix);
  if (all.empty() || leading_number(all.back().substr(prefix.size())) <= incarnation_) return;
  throw make_error<InvalidState>("fenced: a newer process took the place of rank " +
                                     std::to_string(options_.rank) + "; this one must end",
                                 options_.rank);
}

std::uint64_t Membership::newest_generation() {
  const std::string prefix = options_.job + "/gen/";
  const auto keys = options_.store->list(prefix);
  return keys.empty() ? 0 : leading_number(keys.back().substr(prefix.size()));
}

void Membership::abandon_older(std::uint64_t number) {
  Store& store = *options_.store;
  const std::string prefix = options_.job + "/gen/";
  std::map<std::uint64_t, bool> decided;
  for (const auto& name : store.list(prefix)) {
    const std::uint64_t generation = leading_number(name.substr(prefix.size()));
    decided[generation] |= name == key(generation, "outcome");
  }
  for (const auto& [generation, is_decided] : decided) {
    if (generation >= number || is_decided) continue;
    store.compare_and_create(key(generation, "outcome"),
                             "abandoned: a newer generation was claimed");
  }
}

std::optional<std::uint64_t> Membership::join_newest(std::uint64_t& seen) {
  Store& store = *options_.store;
  const std::string world = std::to_string(options_.world_size);
  const std::string claim = world + (options_.agreement.empty() ? "" : " " + options_.agreement);
  const std::uint64_t newest = newest_generation();
  const auto outcome =
      newest == 0 ? std::optional<std::string>(kFormed) : store.get(key(newest, "outcome"));
  if (outcome || newest <= seen) {
    // Decided, or too low for what this rank has: who waits in it is to come along.
    if (!outcome) store.compare_and_create(key(newest, "outcome"), "abandoned: number too low");
    store.compare_and_create(key(std::max(newest, seen) + 1, "claim"), claim);
    return std::nullopt;
  }
  const std::string theirs = store.compare_and_create(key(newest, "claim"), claim);
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
  abandon_older(newest);
  const std::string mine = std::to_string(incarnation_);
  const std::string place = place_of(options_.rank);
  if (store.compare_and_create(key(newest, place), mine) == mine) return newest;
  // By an older process of this rank, or by us in an attempt that failed: it will not come back.
  store.compare_and_create(key(newest, "outcome"), "abandoned: the place of rank " +
                                                       std::to_string(options_.rank) +
                                                       " was taken by a process that is gone");
  seen = newest;
  return std::nullopt;
}

Generation Membership::form(std::uint64_t highest_seen, Deadline deadline) {
  std::uint64_t seen = highest_seen;
  std::set<int> gave_up;  // they came, and left at their own deadline
  while (true) {
    check_not_replaced();
    const auto number = join_newest(seen);
    if (!number) continue;
    if (auto generation = connect(*number, deadline, gave_up)) return *generation;
    seen = *number;
    if (!deadline.expired()) continue;
    throw_missing(seen, gave_up);
    throw Timeout("no generation could be formed by the deadline");
  }
}

/// Throws Timeout with the ranks that have no place in the generation; returns if all have.
void Membership::throw_missing(std::uint64_t number, const std::set<int>& gave_up) {
  std::string missing;
  std::optional<int> first;
  for (int r = 0; r < options_.world_size; ++r) {
    if (gave_up.contains(r) || options_.store->get(key(number, place_of(r)))) continue;
    missing += (missing.empty() ? "" : ", ") + std::to_string(r);
    if (!first) first = r;
  }
  if (!first) return;
  throw make_error<Timeout>(
      "generation " + std::to_string(number) +
          " was not formed by the deadline; these ranks did not come: " + missing,
      first);
}

std::optional<Generation> Membership::connect(std::uint64_t number, Deadline deadline,
                                              std::set<int>& gave_up) {
  Store& store = *options_.store;
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
  result.rank = rank;
  result.world_size = world;
  const auto abandon = [&](const std::string& why) {
    store.compare_and_create(key(number, "outcome"), "abandoned: " + why);
    result.close();
  };
  Attempt attempt(store, key(number, "outcome"));
  const auto token = attempt.stop.get_token();
  try {
    request.name = "links";
    request.peers = merged(tree_links, options_.data_peers);
    result.links = options_.transport->connect_links(request, store, deadline, token);
    attempt.listen(result.links);
    request.name = "data";
    request.peers = options_.data_peers;
    result.data = options_.transport->connect_group(request, store, deadline, token);
    request.name = "train";
    request.peers = tree_links;
    if (options_.training_links == TrainingLinks::kAll) {
      request.peers.clear();
      for (int r = 0; r < world; ++r) {
        if (r != rank) request.peers.push_back(r);
      }
    }
    result.training = detail::with_named_losses(
        options_.transport->connect_group(request, store, deadline, token),
        [store = options_.store, k = key(number, "cause")](int lost, const std::string& reason) {
          return note_cause(*store, k, lost, reason);
        });

    // Up the tree: all connected. At the root: formed, for all to see. Down the tree: go.
    attempt.wait(deadline, [&] { return attempt.ready.size() == children.size(); });
    if (up) {
      result.links->send(*up, std::span(&kReady, 1));
      attempt.wait(deadline, [&] { return attempt.go; });
    } else {
      result.links->set_handlers({});  // what children send after "go" is their user's
      if (!attempt.failed().empty()) throw Cancelled("the generation was abandoned");
      const std::string outcome = store.compare_and_create(key(number, "outcome"), kFormed);
      if (outcome != kFormed) throw Cancelled(outcome);
    }
    for (const int child : children) result.links->send(child, std::span(&kGo, 1));
  } catch (const Timeout&) {
    abandon(gave_up_text(rank));
    throw_missing(number, gave_up);
    throw;
  } catch (const PeerLost& e) {
    abandon(e.what());
    return std::nullopt;
  } catch (const Cancelled&) {
    const std::string why = attempt.failed();
    abandon(why);
    for (int r = 0; r < world; ++r) {
      if (why.ends_with(": " + gave_up_text(r))) gave_up.insert(r);
    }
    return std::nullopt;
  } catch (const Error& e) {
    abandon(e.what());
    throw;
  }
  if (rank == 0) remove_superseded(number);
  return result;
}

void Membership::remove_superseded(std::uint64_t number) {
  // The one before stays: somebody may still ask for its cause.
  const std::string prefix = options_.job + "/gen/";
  for (const auto& k : options_.store->list(prefix)) {
    if (leading_number(k.substr(prefix.size())) + 1 < number) options_.store->remove(k);
  }
}

DeathCause Membership::declare_death(std::uint64_t generation, int rank,
                                     const std::string& reason) {
  return note_cause(*options_.store, key(generation, "cause"), rank, reason);
}

std::optional<DeathCause> Membership::cause_of(std::uint64_t generation) {
  const auto text = options_.store->get(key(generation, "cause"));
  return text ? std::optional(parse_cause(*text)) : std::nullopt;
}

bool Membership::fenced(std::uint64_t generation) {
  const std::string prefix = options_.job + "/incarnation/" + std::to_string(options_.rank) + "/";
  const auto own = options_.store->list(prefix);
  if (!own.empty() && leading_number(own.back().substr(prefix.size())) > incarnation_) return true;
  const std::string generations = options_.job + "/gen/";
  for (const auto& k : options_.store->list(generations)) {
    const std::uint64_t number = leading_number(k.substr(generations.size()));
    if (number > generation && k.ends_with("/outcome") && options_.store->get(k) == kFormed) {
      return true;
    }
  }
  return false;
}

}  // namespace meshstage
