#include <algorithm>
#include <utility>

#include <meshstage/core/comm/in_process/fabric.hpp>
#include <meshstage/core/comm/in_process/node_impl.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/ranks_text.hpp>

namespace meshstage {

namespace in_process {

std::vector<std::shared_ptr<Node>> Fabric::nodes_of(const Endpoint* endpoint) {
  std::vector<std::shared_ptr<Node>> found;
  std::erase_if(nodes, [](const auto& weak) { return weak.expired(); });
  for (const auto& weak : nodes) {
    auto node = weak.lock();
    if (node && node->endpoint.get() == endpoint) found.push_back(std::move(node));
  }
  return found;
}

Node::Node(std::shared_ptr<Fabric> f, std::shared_ptr<Endpoint> e, ConnectRequest r)
    : fabric(std::move(f)), endpoint(std::move(e)), request(std::move(r)) {
  std::sort(request.peers.begin(), request.peers.end());
}

void Node::check_same_job(const Node& other) const {
  const ConnectRequest& theirs = other.request;
  const char* differs = nullptr;
  if (theirs.job != request.job) {
    differs = "job";
  } else if (theirs.generation != request.generation) {
    differs = "generation";
  } else if (theirs.world_size != request.world_size) {
    differs = "world size";
  }
  if (differs == nullptr) return;
  throw make_error<InvalidState>(
      "rank " + std::to_string(theirs.rank) + " at " + place() + " has another " + differs,
      theirs.rank);
}

void Node::meet() {
  if (gone_ || endpoint->frozen || endpoint->dead) return;
  const auto meeting = fabric->meetings.find(place());
  if (meeting == fabric->meetings.end()) return;
  for (const int peer : request.peers) {
    if (connected.contains(peer) || left.contains(peer)) continue;
    const auto found = meeting->second.find(peer);
    const auto other = found == meeting->second.end() ? nullptr : found->second.lock();
    if (!other) continue;
    other->shares_held_mutex();
    if (other->gone_ || other->endpoint->dead || other->endpoint->frozen) continue;
    if (!std::binary_search(other->request.peers.begin(), other->request.peers.end(),
                            request.rank)) {
      continue;
    }
    check_same_job(*other);
    connected[peer] = other;
    other->connected[request.rank] = shared_from_this();
    other->changed.notify_all();
  }
  changed.notify_all();
}

void Node::connect(Deadline deadline, const std::stop_token& stop) {
  MutexLock lock(fabric->mutex);
  fabric->nodes.push_back(weak_from_this());
  fabric->meetings[place()][request.rank] = weak_from_this();
  const auto give_up = [this](auto error) MESHSTAGE_REQUIRES(fabric->mutex) {
    leave(LostReason::kEndOfFile);
    throw error;
  };
  try {
    meet();
  } catch (const Error&) {
    leave(LostReason::kEndOfFile);
    throw;
  }
  (void)changed.wait_until(lock, stop, deadline, [this]() MESHSTAGE_REQUIRES(fabric->mutex) {
    return endpoint->dead || !left.empty() || connected.size() == request.peers.size();
  });
  if (endpoint->dead) give_up(Cancelled("this rank was killed"));
  if (!left.empty()) {
    const int peer = left.begin()->first;
    give_up(make_error<PeerLost>(
        "rank " + std::to_string(peer) + " left while connecting " + request.name, peer));
  }
  std::vector<int> missing;
  for (const int peer : request.peers) {
    if (!connected.contains(peer)) missing.push_back(peer);
  }
  if (!missing.empty()) {
    if (stop.stop_requested()) give_up(Cancelled("connecting was given up"));
    give_up(make_error<Timeout>(
        "did not connect for " + request.name + " by the deadline: rank " + ranks_text(missing),
        missing.front()));
  }
  auto& meeting = fabric->meetings[place()];
  meeting.erase(request.rank);
  if (meeting.empty()) fabric->meetings.erase(place());
}

void Node::leave(LostReason reason) {
  if (std::exchange(gone_, true)) return;
  if (const auto meeting = fabric->meetings.find(place()); meeting != fabric->meetings.end()) {
    const auto own = meeting->second.find(request.rank);
    if (own != meeting->second.end() && own->second.lock().get() == this) {
      meeting->second.erase(own);
    }
    if (meeting->second.empty()) fabric->meetings.erase(meeting);
  }
  for (const auto& [peer, node] : std::exchange(connected, {})) {
    node->shares_held_mutex();
    if (node->connected.erase(request.rank) == 0) continue;
    node->left.emplace(request.rank, reason);
    node->peer_left(request.rank, reason);
    node->changed.notify_all();
  }
  changed.notify_all();
}

namespace {

class InProcessTransport final : public Transport {
 public:
  InProcessTransport(std::shared_ptr<Fabric> fabric, std::shared_ptr<Endpoint> endpoint)
      : fabric_(std::move(fabric)), endpoint_(std::move(endpoint)) {}

  std::shared_ptr<ControlLinks> connect_links(const ConnectRequest& request, Store& /*store*/,
                                              Deadline deadline, std::stop_token stop) override {
    check(request);
    return in_process::connect_links(fabric_, endpoint_, request, deadline, stop);
  }
  std::shared_ptr<ProcessGroup> connect_group(const ConnectRequest& request, Store& /*store*/,
                                              Deadline deadline, std::stop_token stop) override {
    check(request);
    return in_process::connect_group(fabric_, endpoint_, request, deadline, stop);
  }

 private:
  void check(const ConnectRequest& request) const {
    check_request(request);
    if (request.rank == endpoint_->rank) return;
    throw InvalidArgument("this transport is rank " + std::to_string(endpoint_->rank) +
                          "'s, not rank " + std::to_string(request.rank) + "'s");
  }
  const std::shared_ptr<Fabric> fabric_;
  const std::shared_ptr<Endpoint> endpoint_;
};

}  // namespace

}  // namespace in_process

struct InProcessFabric::State {
  std::shared_ptr<in_process::Fabric> fabric = std::make_shared<in_process::Fabric>();

  /// Calls f(node) for each node of the rank's newest endpoint, under the mutex.
  template <class Change, class F>
  void each_node(int rank, Change&& change, F&& f) const {
    const MutexLock lock(fabric->mutex);
    const auto endpoint = fabric->newest.find(rank);
    if (endpoint == fabric->newest.end()) {
      throw InvalidArgument("no transport was attached for rank " + std::to_string(rank));
    }
    change(*endpoint->second);
    for (const auto& node : fabric->nodes_of(endpoint->second.get())) {
      f(*node);
      node->changed.notify_all();
    }
  }
};

InProcessFabric::InProcessFabric() : state_(std::make_shared<State>()) {}
InProcessFabric::~InProcessFabric() = default;

std::shared_ptr<Transport> InProcessFabric::attach(int rank) {
  auto endpoint = std::make_shared<in_process::Endpoint>();
  endpoint->rank = rank;
  const MutexLock lock(state_->fabric->mutex);
  state_->fabric->newest[rank] = endpoint;
  return std::make_shared<in_process::InProcessTransport>(state_->fabric, std::move(endpoint));
}

void InProcessFabric::kill(int rank) {
  state_->each_node(
      rank, [](in_process::Endpoint& e) { e.dead = true; },
      [](in_process::Node& node) {
        node.shares_held_mutex();
        node.killed();
        node.leave(LostReason::kEndOfFile);
      });
}

void InProcessFabric::freeze(int rank) {
  state_->each_node(
      rank, [](in_process::Endpoint& e) { e.frozen = true; },
      [](in_process::Node& node) {
        node.shares_held_mutex();
        node.frozen(true);
      });
}

void InProcessFabric::thaw(int rank) {
  state_->each_node(
      rank, [](in_process::Endpoint& e) { e.frozen = false; },
      [](in_process::Node& node) {
        node.shares_held_mutex();
        node.meet();
        node.frozen(false);
      });
}

void InProcessFabric::report_silent(int rank) {
  state_->each_node(
      rank, [](const in_process::Endpoint&) {},
      [rank](in_process::Node& node) {
        if (dynamic_cast<ControlLinks*>(&node) == nullptr) return;
        node.shares_held_mutex();
        for (const auto& [peer, other] : std::exchange(node.connected, {})) {
          other->shares_held_mutex();
          other->connected.erase(rank);
          other->left.emplace(rank, LostReason::kSilent);
          other->peer_left(rank, LostReason::kSilent);
          other->changed.notify_all();
          // The peer dropped the connection: that is what the silent one sees when it wakes.
          node.left.emplace(peer, LostReason::kEndOfFile);
          node.peer_left(peer, LostReason::kEndOfFile);
        }
      });
}

}  // namespace meshstage
