#include <algorithm>
#include <array>
#include <map>
#include <new>
#include <set>
#include <span>
#include <stop_token>
#include <string_view>
#include <utility>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/thread.hpp>
#include <meshstage/core/comm/connect_ranks_impl.hpp>
#include <meshstage/core/comm/job_entries_impl.hpp>
#include <meshstage/core/comm/named_losses_impl.hpp>
#include <meshstage/core/comm/several_connections.hpp>
#include <meshstage/core/comm/wrapped_store.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/rank_tree.hpp>

namespace meshstage::detail {

namespace {

/// What a rank that gives up still writes after its deadline, so that nobody waits for it.
constexpr std::chrono::seconds kLastWords{2};
constexpr std::byte kReady{'R'};  // child to parent: all below and I are connected
constexpr std::byte kGo{'G'};     // parent to child: the generation is formed
/// First between data peers, with two more bytes: so many connections for images I want to have,
/// while the trainer works and in a recovery.
constexpr std::byte kConnections{'C'};

std::vector<int> all_but(int rank, int world) {
  std::vector<int> others;
  for (int r = 0; r < world; ++r) {
    if (r != rank) others.push_back(r);
  }
  return others;
}

std::vector<int> merged(std::vector<int> a, const std::vector<int>& b) {
  a.insert(a.end(), b.begin(), b.end());
  std::sort(a.begin(), a.end());
  a.erase(std::unique(a.begin(), a.end()), a.end());
  return a;
}

/// The Store as a transport sees it while it connects: remembers the addresses that it publishes.
class PublishedIn final : public WrappedStore {
 public:
  using WrappedStore::WrappedStore;

  void set(const std::string& key, std::string_view value, Deadline deadline) override {
    published_.push_back(key);
    WrappedStore::set(key, value, deadline);
  }
  std::string compare_and_create(const std::string& key, std::string_view value,
                                 Deadline deadline) override {
    published_.push_back(key);
    return WrappedStore::compare_and_create(key, value, deadline);
  }

  void remove_published(Deadline deadline) {
    for (const auto& key : std::exchange(published_, {})) remove(key, deadline);
  }

 private:
  std::vector<std::string> published_;  // of the thread that connects
};

/// Why an attempt was abandoned, from its outcome in the Store.
std::string reason_in(const std::string& outcome) {
  return outcome.starts_with(kAbandoned) ? outcome.substr(kAbandoned.size()) : outcome;
}

/// One generation on its way: what the links and the Store say while this rank connects.
struct Attempt {
  Attempt(Store& store, int own_rank, const std::string& outcome_key)
      : rank(own_rank),
        watcher(
            "ms-forming",
            [this, &store, outcome_key](const std::stop_token& done) {
              try {
                const std::string outcome = store.wait_for(outcome_key, Deadline::never(), done);
                if (outcome != kFormed) fail(reason_in(outcome));
              } catch (const Cancelled&) {
                // This rank is through.
              } catch (const std::bad_alloc&) {
                fail_without_text();
              } catch (const std::exception& e) {
                fail(deaf_text(rank, e.what()));
              }
            },
            [this](const std::exception_ptr&) { fail_without_text(); }) {}
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
  /// Where there is no memory for words, and for what the Store threw that is no std::exception.
  void fail_without_text() noexcept {
    {
      const MutexLock lock(mutex);
      wordless = true;
    }
    stop.request_stop();
  }
  [[nodiscard]] std::string failed() {
    const MutexLock lock(mutex);
    if (wordless && failure.empty()) return deaf_text(rank, "no memory, or no reason was given");
    return failure;
  }

  /// From now on the links tell us; until "go" has come, then they keep things for their user.
  void listen(const std::shared_ptr<ControlLinks>& to) {
    links = to.get();
    ControlHandlers handlers;
    // A peer that has heard "go" before us may say more than that: it is for whoever comes next.
    handlers.takes = [](int /*peer*/, std::span<const std::byte> message) {
      if (message.size() == 3) return message[0] == kConnections;
      return message.size() == 1 && (message[0] == kReady || message[0] == kGo);
    };
    handlers.on_message = [this](int peer, std::span<const std::byte> message) {
      // No later message is ours.
      if (message[0] == kGo) links->set_handlers({});
      const MutexLock lock(mutex);
      if (message[0] == kReady) ready.insert(peer);
      if (message[0] == kConnections) {
        wanted[peer] = {std::to_integer<unsigned>(message[1]),
                        std::to_integer<unsigned>(message[2])};
      }
      if (message[0] == kGo) go = true;
      changed.notify_all();
    };
    handlers.on_lost = [this](int peer, LostReason reason, const std::string& detail) {
      fail("rank " + std::to_string(peer) + " went away while forming (" +
           std::string(to_string(reason)) + ": " + detail + ")");
    };
    links->set_handlers(std::move(handlers));
  }

  /// Tells the data peers how many connections for images this rank wants to have, and waits until
  /// they have told it. Returns the smaller numbers for each. Throws as wait_for_children().
  std::map<int, Connections> agree_on_connections(const std::vector<int>& peers,
                                                  const Connections& wanted_here,
                                                  Deadline deadline) {
    const unsigned beside_trainer = std::clamp(wanted_here.beside_trainer, 1U, kMostConnections);
    const Connections here{beside_trainer,
                           std::clamp(wanted_here.in_recovery, beside_trainer, kMostConnections)};
    const std::array message{kConnections, static_cast<std::byte>(here.beside_trainer),
                             static_cast<std::byte>(here.in_recovery)};
    for (const int peer : peers) links->send(peer, message);
    MutexLock lock(mutex);
    const auto token = stop.get_token();
    check(token, changed.wait_until(lock, token, deadline, [&]() MESHSTAGE_REQUIRES(mutex) {
      return std::all_of(peers.begin(), peers.end(),
                         [&](int peer) MESHSTAGE_REQUIRES(mutex) { return wanted.contains(peer); });
    }));
    std::map<int, Connections> agreed;
    for (const int peer : peers) {
      const Connections& there = wanted.at(peer);
      agreed[peer] = {std::clamp(there.beside_trainer, 1U, here.beside_trainer),
                      std::clamp(there.in_recovery, 1U, here.in_recovery)};
    }
    return agreed;
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

  const int rank;
  Mutex mutex;
  CondVar changed;
  std::stop_source stop;
  std::string failure MESHSTAGE_GUARDED_BY(mutex);
  bool wordless MESHSTAGE_GUARDED_BY(mutex) = false;  // it failed without words
  std::set<int> ready MESHSTAGE_GUARDED_BY(mutex);
  std::map<int, Connections> wanted MESHSTAGE_GUARDED_BY(mutex);  // by data peer
  bool go MESHSTAGE_GUARDED_BY(mutex) = false;
  ControlLinks* links = nullptr;  // set before the links call a handler
  StoppableThread watcher;        // last: it ends before what it uses
};

/// Generation::connect_pairs of the generation that `request` names; its name is that of the links
/// and the group, but for their ends.
Pairs connect_pairs(const std::shared_ptr<Store>& store, Transport& transport,
                    ConnectRequest request, const std::vector<int>& peers, Deadline deadline,
                    const std::stop_token& stop) {
  const std::string name = request.name;
  PublishedIn published(store);
  request.peers = peers;
  Pairs made;
  try {
    request.name = name + "-links";
    made.links = transport.connect_links(request, published, deadline, stop);
    request.name = name + "-data";
    made.data = transport.connect_group(request, published, deadline, stop);
    return made;
  } catch (...) {  // whatever it is, half of a pair is no use
    if (made.links) made.links->close();
    published.remove_published(Deadline::after(kLastWords));
    throw;
  }
}

}  // namespace

std::string gave_up_text(int rank) {
  return "rank " + std::to_string(rank) + " waited until its deadline";
}

constexpr std::string_view kDeaf = " could not wait for the outcome: ";

std::string deaf_text(int rank, const std::string& why) {
  return "rank " + std::to_string(rank) + std::string(kDeaf) + why;
}

bool is_a_fault(std::string_view why) {
  return why.starts_with(to_string(ErrorKind::kPeerLost)) ||
         why.starts_with(to_string(ErrorKind::kPeerSilent)) ||
         why.find(kDeaf) != std::string_view::npos;
}

Attempted connect_ranks(const MembershipOptions& options, std::uint64_t number,
                        const std::string& claim, Deadline deadline) {
  Store& store = *options.store;
  PublishedIn published(options.store);
  const std::string outcome_key = generation_key(options.job, number, "outcome");
  const int rank = options.rank;
  const int world = options.world_size;
  const auto up = tree::parent(rank);
  const auto children = tree::children(rank, world);
  const auto tree_links = tree::neighbours(rank, world);

  ConnectRequest request;
  request.job = options.job;
  request.generation = number;
  request.rank = rank;
  request.world_size = world;
  request.store_prefix = generation_key(options.job, number, "net");

  Generation result;
  result.number = number;
  result.claim = claim;
  result.rank = rank;
  result.world_size = world;
  const auto pairs_named = [&](const char* name) -> Generation::Connect {
    ConnectRequest named = request;
    named.name = name;
    return [store = options.store, transport = options.transport, named](
               const std::vector<int>& peers, Deadline by, const std::stop_token& stop) {
      return connect_pairs(store, *transport, named, peers, by, stop);
    };
  };
  result.connect_pairs = pairs_named("pair");
  result.connect_old_pairs = pairs_named("old-pair");
  // Returns why the attempt ends: a fault that this rank met, else what the first rank has said.
  const auto abandon = [&](const std::string& why) {
    const Deadline last_words = Deadline::after(kLastWords);
    const std::string outcome =
        store.compare_and_create(outcome_key, std::string(kAbandoned) + why, last_words);
    result.close();
    published.remove_published(last_words);
    return is_a_fault(why) || outcome == kFormed ? why : reason_in(outcome);
  };
  Attempt attempt(store, rank, outcome_key);
  const auto token = attempt.stop.get_token();
  try {
    request.name = "links";
    request.peers = merged(tree_links, options.data_peers);
    result.links = options.transport->connect_links(request, published, deadline, token);
    attempt.listen(result.links);
    request.name = "data";
    request.peers = options.data_peers;
    result.connections = attempt.agree_on_connections(
        options.data_peers, {options.connections, options.recovery_connections}, deadline);
    std::map<int, unsigned> connections;
    for (const auto& [peer, agreed] : result.connections) connections[peer] = agreed.in_recovery;
    result.data =
        connect_several(*options.transport, request, connections, published, deadline, token);
    request.name = "train";
    const auto others = all_but(rank, world);
    request.peers = options.training_links == TrainingLinks::kAll ? others : tree_links;
    const auto note = [store = options.store, job = options.job, number](
                          int lost, const std::string& reason, Deadline by) {
      return note_cause(*store, job, number, {lost, reason}, by);
    };
    result.training = detail::with_named_losses(
        options.transport->connect_group(request, published, deadline, token), note);
    if (options.device_transport) {
      request.name = "device";
      request.peers = others;
      result.device = detail::with_named_losses(
          options.device_transport->connect_group(request, published, deadline, token), note);
    }

    // Up the tree: all connected. At the root: formed, for all to see. Down the tree: go.
    attempt.wait_for_children(children.size(), deadline);
    if (up) {
      result.links->send(*up, std::span(&kReady, 1));
      attempt.wait_for_go(deadline);
    } else {
      result.links->set_handlers({});  // what children send after "go" is their user's
      if (!attempt.failed().empty()) throw Cancelled("the generation was abandoned");
      const std::string outcome = store.compare_and_create(outcome_key, kFormed, deadline);
      if (outcome != kFormed) throw Cancelled(outcome);
    }
    for (const int child : children) result.links->send(child, std::span(&kGo, 1));
  } catch (const Timeout&) {
    (void)abandon(gave_up_text(rank));
    throw;
  } catch (const RejoinNeeded& e) {
    return {{}, abandon(e.what())};
  } catch (const Cancelled&) {
    return {{}, abandon(attempt.failed())};
  } catch (const Error& e) {
    (void)abandon(e.what());
    throw;
  }
  return {result, {}};
}

}  // namespace meshstage::detail
