#include <algorithm>
#include <deque>
#include <utility>

#include <meshstage/core/async/thread.hpp>
#include <meshstage/core/comm/deliveries_impl.hpp>
#include <meshstage/core/comm/in_process/node_impl.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::in_process {

namespace {

/// Node towards the fabric, ControlLinks towards the user.
class InProcessLinksNode : public Node, public ControlLinks {
 public:
  using Node::Node;
  ~InProcessLinksNode() override { close(); }

  void start() {
    const MutexLock lock(joining_);
    thread_ = Thread("ms-links", [this] { run(); });
  }

  [[nodiscard]] int rank() const noexcept override { return request.rank; }
  [[nodiscard]] const std::vector<int>& peers() const noexcept override { return request.peers; }
  void set_handlers(ControlHandlers handlers) override {
    deliveries_.set_handlers(std::move(handlers));
  }

  void send(int peer, std::span<const std::byte> message) override {
    if (!std::binary_search(request.peers.begin(), request.peers.end(), peer)) {
      throw make_error<InvalidArgument>(
          "rank " + std::to_string(rank()) + " has no link to rank " + std::to_string(peer), peer);
    }
    if (message.size() > kMaxMessageBytes) {
      throw InvalidArgument("a control message has at most " + std::to_string(kMaxMessageBytes) +
                            " bytes, this one has " + std::to_string(message.size()));
    }
    std::vector<std::byte> bytes(message.begin(), message.end());
    const MutexLock lock(fabric->mutex);
    if (endpoint->frozen) {
      held_.emplace_back(peer, std::move(bytes));
    } else {
      pass_on(peer, std::move(bytes));
    }
  }

  void close() noexcept override {
    {
      const MutexLock lock(fabric->mutex);
      // A frozen process cannot say goodbye: what it does counts when it wakes.
      if (endpoint->frozen) {
        closed_while_frozen_ = true;
      } else {
        leave(LostReason::kClosed);
      }
    }
    deliveries_.stop();
    const MutexLock lock(joining_);
    thread_.join();
  }

  void peer_left(int peer, LostReason reason) override MESHSTAGE_REQUIRES(fabric->mutex) {
    deliveries_.lost(peer, reason, std::string(to_string(reason)));
  }
  void killed() override MESHSTAGE_REQUIRES(fabric->mutex) { deliveries_.stop(); }
  void frozen(bool now) override MESHSTAGE_REQUIRES(fabric->mutex) {
    deliveries_.pause(now);
    if (now) return;
    for (auto& [peer, bytes] : std::exchange(held_, {})) pass_on(peer, std::move(bytes));
    if (closed_while_frozen_) leave(LostReason::kClosed);
  }

 private:
  void pass_on(int peer, std::vector<std::byte> bytes) MESHSTAGE_REQUIRES(fabric->mutex) {
    const auto other = connected.find(peer);
    if (other == connected.end()) return;  // lost; on_lost tells
    static_cast<InProcessLinksNode&>(*other->second).deliveries_.message(rank(), std::move(bytes));
  }
  void run() {
    while (deliveries_.wait()) {
      try {
        deliveries_.deliver_one();
      } catch (...) {  // a message is lost, so no link of this rank can go on
        const MutexLock lock(fabric->mutex);
        for (const auto& [peer, other] : connected) {
          deliveries_.lost(peer, LostReason::kProtocol, "at this end, its thread failed");
        }
        leave(LostReason::kProtocol);
      }
    }
  }

  Deliveries deliveries_;
  std::deque<std::pair<int, std::vector<std::byte>>> held_
      MESHSTAGE_GUARDED_BY(fabric->mutex);  // sent while frozen
  bool closed_while_frozen_ MESHSTAGE_GUARDED_BY(fabric->mutex) = false;
  Mutex joining_;
  Thread thread_ MESHSTAGE_GUARDED_BY(joining_);
};

}  // namespace

std::shared_ptr<ControlLinks> connect_links(std::shared_ptr<Fabric> fabric,
                                            std::shared_ptr<Endpoint> endpoint,
                                            const ConnectRequest& request, Deadline deadline,
                                            const std::stop_token& stop) {
  auto node = std::make_shared<InProcessLinksNode>(std::move(fabric), std::move(endpoint), request);
  node->connect(deadline, stop);
  node->start();
  // The fabric keeps connected nodes alive through each other; the user's handle closes them.
  return {node.get(), [node](ControlLinks* links) mutable {
            links->close();
            node.reset();
          }};
}

}  // namespace meshstage::in_process
