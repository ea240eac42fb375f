#include <meshstage/core/comm/several_connections.hpp>

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/origin.hpp>
#include <meshstage/core/comm/late_transfer_impl.hpp>
#include <meshstage/core/comm/while_moving.hpp>
#include <meshstage/core/comm/wrapped_collectives.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {
namespace {

/// What the group has in common with its connections and their transfers, which may outlive it.
class Joined {
 public:
  explicit Joined(std::vector<std::shared_ptr<ProcessGroup>> groups) : groups_(std::move(groups)) {
    const auto size = static_cast<std::size_t>(groups_.front()->size());
    done_ = std::vector<std::atomic<std::uint64_t>>(size);
  }

  [[nodiscard]] ProcessGroup& group(unsigned i) const { return *groups_[i]; }
  [[nodiscard]] unsigned count() const noexcept { return static_cast<unsigned>(groups_.size()); }
  [[nodiscard]] unsigned connections(int peer) const noexcept {
    return static_cast<unsigned>(std::count_if(
        groups_.begin(), groups_.end(), [peer](const auto& group) { return group->linked(peer); }));
  }
  /// Over all connections to the peer. A backend that cannot see bytes move has transfers end.
  [[nodiscard]] std::uint64_t moved(int peer) const {
    std::uint64_t sum = done_[static_cast<std::size_t>(peer)].load();
    for (const auto& group : groups_) {
      if (group->linked(peer)) sum += group->moved(peer);
    }
    return sum;
  }
  void count_done(int peer) noexcept { ++done_[static_cast<std::size_t>(peer)]; }

  void abort(std::exception_ptr reason) noexcept {
    const MutexLock lock(mutex_);  // so that one cause is the first of all of them
    if (!cause_) cause_ = std::move(reason);
    for (const auto& group : groups_) group->abort(cause_);
  }
  void note_late(const Transfer* transfer, std::exception_ptr why) noexcept {
    const MutexLock lock(mutex_);
    late_.note(transfer, std::move(why));
  }
  void note_done(const Transfer* transfer) noexcept {
    const MutexLock lock(mutex_);
    late_.done(transfer);
  }
  [[nodiscard]] std::exception_ptr reason_to_give_up() noexcept {
    const MutexLock lock(mutex_);
    return late_.reason([] { return "a transfer was given up"; });
  }
  void close() const noexcept {
    for (const auto& group : groups_) group->close();
  }

  const ProcessOrigin origin;

 private:
  const std::vector<std::shared_ptr<ProcessGroup>> groups_;
  std::vector<std::atomic<std::uint64_t>> done_;  // transfers, by peer
  Mutex mutex_;
  std::exception_ptr cause_ MESHSTAGE_GUARDED_BY(mutex_);
  detail::LateTransfer late_ MESHSTAGE_GUARDED_BY(mutex_);
};

class JoinedTransfer final : public Transfer {
 public:
  JoinedTransfer(std::shared_ptr<Joined> joined, std::unique_ptr<Transfer> inner, int peer)
      : joined_(std::move(joined)), inner_(std::move(inner)), peer_(peer) {}
  JoinedTransfer(const JoinedTransfer&) = delete;
  JoinedTransfer& operator=(const JoinedTransfer&) = delete;
  ~JoinedTransfer() override {
    if (done_ || !joined_->origin.is_here()) return;
    joined_->abort(joined_->reason_to_give_up());  // before the inner one ends its own
  }

  void wait(Deadline deadline) override {
    try {
      waited([&] {
        inner_->wait(deadline);
        return true;
      });
    } catch (const PeerSilent&) {
      joined_->note_late(this, std::current_exception());
      throw;
    }
  }
  [[nodiscard]] bool done_by(Deadline deadline) override {
    return waited([&] { return inner_->done_by(deadline); });
  }
  void wait_while_moving(std::chrono::milliseconds silence) override {
    const auto by = [this](Deadline deadline) { return done_by(deadline); };
    if (detail::done_while_moving(silence, by, [this] { return joined_->moved(peer_); })) return;
    const auto why = std::make_exception_ptr(make_error<PeerSilent>(
        "rank " + std::to_string(peer_) + ": nothing moved over any connection for " +
            std::to_string(silence.count()) + " ms",
        peer_));
    joined_->note_late(this, why);
    std::rethrow_exception(why);
  }

 private:
  /// `wait` says whether the transfer is done. A lost peer is what the other transfers throw, too.
  template <class Wait>
  bool waited(Wait&& wait) {
    try {
      if (!wait()) return false;
    } catch (const PeerLost&) {
      joined_->abort(std::current_exception());
      throw;
    }
    joined_->note_done(this);
    if (!std::exchange(done_, true)) joined_->count_done(peer_);
    return true;
  }
  const std::shared_ptr<Joined> joined_;
  std::unique_ptr<Transfer> inner_;
  const int peer_;
  bool done_ = false;  // the waiting thread's own
};

/// One connection.
class Connection final : public ProcessGroup {
 public:
  Connection(std::shared_ptr<Joined> joined, unsigned number)
      : joined_(std::move(joined)),
        inner_(joined_->group(number)),
        collectives_(collectives::wrapped(inner_, [all = joined_](Deadline by, const auto& call) {
          try {
            call(by);
          } catch (const PeerLost&) {
            all->abort(std::current_exception());
            throw;
          }
        })) {}

  [[nodiscard]] int rank() const noexcept override { return inner_.rank(); }
  [[nodiscard]] int size() const noexcept override { return inner_.size(); }
  [[nodiscard]] bool linked(int peer) const noexcept override { return inner_.linked(peer); }
  std::unique_ptr<Transfer> send(int peer, std::uint64_t tag,
                                 std::span<const std::byte> bytes) override {
    return joined([&] { return inner_.send(peer, tag, bytes); }, peer, bytes.size());
  }
  std::unique_ptr<Transfer> receive(int peer, std::uint64_t tag,
                                    std::span<std::byte> target) override {
    return joined([&] { return inner_.receive(peer, tag, target); }, peer, target.size());
  }
  [[nodiscard]] std::uint64_t moved(int peer) const override { return joined_->moved(peer); }
  void abort(std::exception_ptr cause) noexcept override { joined_->abort(std::move(cause)); }
  void close() noexcept override { joined_->close(); }
  [[nodiscard]] collectives::Own* own_collectives() noexcept override { return collectives_.get(); }

 private:
  template <class Post>
  std::unique_ptr<Transfer> joined(Post&& post, int peer, std::size_t bytes) const {
    try {
      auto transfer = post();
      if (bytes == 0) return transfer;  // complete already
      return std::make_unique<JoinedTransfer>(joined_, std::move(transfer), peer);
    } catch (const PeerLost&) {  // what the other transfers throw, too
      joined_->abort(std::current_exception());
      throw;
    }
  }
  const std::shared_ptr<Joined> joined_;
  ProcessGroup& inner_;
  const std::unique_ptr<collectives::Own> collectives_;  // null if inner_ has none
};

constexpr unsigned kMostByDefault = 8;

unsigned share_of(const AvailableProcessors& processors, unsigned local_ranks) {
  return processors.count() / std::max(1U, local_ranks);
}

class JoinedGroup final : public ProcessGroup {
 public:
  explicit JoinedGroup(std::vector<std::shared_ptr<ProcessGroup>> groups)
      : joined_(std::make_shared<Joined>(std::move(groups))) {
    for (unsigned i = 0; i < joined_->count(); ++i) {
      connections_.push_back(std::make_unique<Connection>(joined_, i));
    }
  }
  JoinedGroup(const JoinedGroup&) = delete;
  JoinedGroup& operator=(const JoinedGroup&) = delete;
  ~JoinedGroup() override { joined_->close(); }

  [[nodiscard]] int rank() const noexcept override { return connections_[0]->rank(); }
  [[nodiscard]] int size() const noexcept override { return connections_[0]->size(); }
  [[nodiscard]] bool linked(int peer) const noexcept override {
    return connections_[0]->linked(peer);
  }
  std::unique_ptr<Transfer> send(int peer, std::uint64_t tag,
                                 std::span<const std::byte> bytes) override {
    return connections_[0]->send(peer, tag, bytes);
  }
  std::unique_ptr<Transfer> receive(int peer, std::uint64_t tag,
                                    std::span<std::byte> target) override {
    return connections_[0]->receive(peer, tag, target);
  }
  [[nodiscard]] unsigned connections(int peer) const noexcept override {
    return joined_->connections(peer);
  }
  [[nodiscard]] ProcessGroup& over(unsigned i) noexcept override { return *connections_[i]; }
  [[nodiscard]] std::uint64_t moved(int peer) const override { return joined_->moved(peer); }
  void abort(std::exception_ptr cause) noexcept override { joined_->abort(std::move(cause)); }
  void close() noexcept override { joined_->close(); }
  [[nodiscard]] collectives::Own* own_collectives() noexcept override {
    return connections_[0]->own_collectives();
  }

 private:
  const std::shared_ptr<Joined> joined_;
  std::vector<std::unique_ptr<Connection>> connections_;
};

}  // namespace

unsigned default_connections(const AvailableProcessors& processors, unsigned local_ranks) {
  constexpr unsigned kToSpare = 4;
  const unsigned share = share_of(processors, local_ranks);
  return share <= kToSpare ? 1 : std::min(share, kMostByDefault);
}

unsigned default_recovery_connections(const AvailableProcessors& processors, unsigned local_ranks) {
  return std::clamp(share_of(processors, local_ranks), 2U, kMostByDefault);
}

std::shared_ptr<ProcessGroup> join_connections(std::vector<std::shared_ptr<ProcessGroup>> groups) {
  if (groups.empty()) throw InvalidArgument("join_connections() needs a group");
  return std::make_shared<JoinedGroup>(std::move(groups));
}

std::shared_ptr<ProcessGroup> connect_several(Transport& transport, ConnectRequest request,
                                              const std::map<int, unsigned>& connections,
                                              Store& store, Deadline deadline,
                                              const std::stop_token& stop) {
  std::vector<std::shared_ptr<ProcessGroup>> groups;
  groups.push_back(transport.connect_group(request, store, deadline, stop));
  const std::string name = request.name;
  for (unsigned i = 1; i < kMostConnections; ++i) {
    std::erase_if(request.peers, [&](int peer) {
      const auto agreed = connections.find(peer);
      return agreed == connections.end() || agreed->second <= i;
    });
    if (request.peers.empty()) break;
    request.name = name + "-" + std::to_string(i);
    groups.push_back(transport.connect_group(request, store, deadline, stop));
  }
  if (groups.size() == 1) return groups.front();
  return join_connections(std::move(groups));
}

}  // namespace meshstage
