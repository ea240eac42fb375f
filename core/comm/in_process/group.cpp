#include <algorithm>
#include <cstring>
#include <deque>
#include <utility>

#include <meshstage/core/comm/in_process/node_impl.hpp>
#include <meshstage/core/comm/late_transfer_impl.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/exception_of.hpp>

namespace meshstage::in_process {

namespace {

/// One send or receive; guarded by the fabric's mutex once it is posted.
struct Operation {
  enum class State { kNew, kPosted, kCopying, kDone, kFailed };
  State state = State::kNew;
  bool is_send = false;
  int peer = 0;
  std::uint64_t tag = 0;
  const std::byte* source = nullptr;  // of a send
  std::byte* target = nullptr;        // of a receive
  std::size_t bytes = 0;
  std::exception_ptr error;
  CondVar changed;

  void finish(State now, std::exception_ptr why = nullptr) {
    state = now;
    error = std::move(why);
    changed.notify_all();
  }
};
using OperationPtr = std::shared_ptr<Operation>;

class GroupNode;

class InProcessTransfer final : public Transfer {
 public:
  InProcessTransfer(std::shared_ptr<GroupNode> node, OperationPtr operation)
      : node_(std::move(node)), operation_(std::move(operation)) {}
  InProcessTransfer(const InProcessTransfer&) = delete;
  InProcessTransfer& operator=(const InProcessTransfer&) = delete;
  ~InProcessTransfer() override;
  void wait(Deadline deadline) override;
  [[nodiscard]] bool done_by(Deadline deadline) override;

 private:
  const std::shared_ptr<GroupNode> node_;
  const OperationPtr operation_;
  bool done_ = false;  // the waiting thread's own
};

class GroupNode final : public Node {
 public:
  using Node::Node;

  /// If this throws, the operation may be posted: its transfer takes it out of use.
  void post(const OperationPtr& operation) {
    MutexLock lock(fabric->mutex);
    if (!endpoint->dead && ended_by_close) throw InvalidState("the process group was closed");
    check_usable();
    if (operation->bytes == 0) {
      operation->state = Operation::State::kDone;
      return;
    }
    if (left.contains(operation->peer)) throw lost(operation->peer);
    posted.push_back(operation);
    operation->state = Operation::State::kPosted;
    match(operation->peer);
  }

  /// Throws what an abort, a kill or a close left.
  void check_usable() const MESHSTAGE_REQUIRES(fabric->mutex) {
    if (endpoint->dead) throw Cancelled("this rank was killed");
    if (cause) std::rethrow_exception(cause);
  }

  void abort(std::exception_ptr reason) noexcept {
    const MutexLock lock(fabric->mutex);
    fail_all(std::move(reason));
  }

  void close() noexcept {
    MutexLock lock(fabric->mutex);
    if (!cause) ended_by_close = true;
    fail_all(closing());
    copied.wait(lock, [this]() MESHSTAGE_REQUIRES(fabric->mutex) { return copying == 0; });
    leave(LostReason::kClosed);
  }

  /// Takes an operation out of use: after it returns its memory is not touched.
  void withdraw(MutexLock& lock, const OperationPtr& operation) MESHSTAGE_REQUIRES(fabric->mutex) {
    operation->changed.wait(lock, [&] { return operation->state != Operation::State::kCopying; });
    if (operation->state != Operation::State::kPosted) return;
    fail_all(late.reason([&] {
      return "a transfer was given up: " + detail::transfer_text(operation->peer, operation->bytes,
                                                                 operation->is_send, request.rank);
    }));
  }

  void peer_left(int peer, LostReason /*reason*/) override MESHSTAGE_REQUIRES(fabric->mutex) {
    const auto mine = [peer](const OperationPtr& o) { return o->peer == peer; };
    for (const auto& operation : posted) {
      if (mine(operation)) {
        operation->finish(Operation::State::kFailed, exception_of([&] { return lost(peer); }));
      }
    }
    std::erase_if(posted, mine);
  }
  void killed() override MESHSTAGE_REQUIRES(fabric->mutex) {
    fail_all(std::make_exception_ptr(Cancelled("this rank was killed")));
  }
  void frozen(bool now) override MESHSTAGE_REQUIRES(fabric->mutex) {
    if (now) return;
    // Everything that met while one end was frozen, from whichever side it waits.
    for (const int peer : request.peers) match(peer);
  }

  std::exception_ptr cause MESHSTAGE_GUARDED_BY(fabric->mutex);
  detail::LateTransfer late MESHSTAGE_GUARDED_BY(fabric->mutex);
  bool ended_by_close MESHSTAGE_GUARDED_BY(fabric->mutex) = false;  // before any abort

 private:
  [[nodiscard]] PeerLost lost(int peer) const {
    return make_error<PeerLost>("rank " + std::to_string(peer) + " left the group " + request.name,
                                peer);
  }

  /// What pending transfers throw after close(). Its text is left out where no memory is left.
  [[nodiscard]] static std::exception_ptr closing() noexcept {
    return exception_of([] { return Cancelled("the process group was closed"); });
  }

  void fail_all(std::exception_ptr reason) MESHSTAGE_REQUIRES(fabric->mutex) {
    if (!cause) cause = std::move(reason);
    for (const auto& operation : posted) operation->finish(Operation::State::kFailed, cause);
    posted.clear();  // an empty deque in its place would allocate
  }

  [[nodiscard]] OperationPtr take(bool is_send, int peer, std::uint64_t tag)
      MESHSTAGE_REQUIRES(fabric->mutex) {
    const auto found = std::find_if(posted.begin(), posted.end(), [&](const OperationPtr& o) {
      return o->is_send == is_send && o->peer == peer && o->tag == tag;
    });
    if (found == posted.end()) return nullptr;
    auto operation = *found;
    posted.erase(found);
    return operation;
  }

  /// Carries out what both this node and `peer`'s have posted. The mutex is given up for the
  /// copies.
  void match(int peer) MESHSTAGE_REQUIRES(fabric->mutex) {
    while (true) {
      const auto entry = connected.find(peer);
      if (entry == connected.end()) return;
      const auto other = std::static_pointer_cast<GroupNode>(entry->second);
      other->shares_held_mutex();
      if (endpoint->frozen || other->endpoint->frozen) return;
      OperationPtr mine;
      OperationPtr theirs;
      for (const auto& candidate : posted) {
        if (candidate->peer != peer) continue;
        theirs = other->take(!candidate->is_send, request.rank, candidate->tag);
        if (!theirs) continue;
        mine = take(candidate->is_send, peer, candidate->tag);
        break;
      }
      if (!mine) return;
      const OperationPtr& from = mine->is_send ? mine : theirs;
      const OperationPtr& to = mine->is_send ? theirs : mine;
      if (from->bytes != to->bytes) {
        // Both are out of `posted`, so both must end, whatever there is no memory for.
        for (const auto& o : {mine, theirs}) {
          o->finish(Operation::State::kFailed, exception_of([&] {
                      return make_error<CorruptData>("a message of " + std::to_string(from->bytes) +
                                                         " bytes met a target of " +
                                                         std::to_string(to->bytes),
                                                     o->peer);
                    }));
        }
        continue;
      }
      mine->state = theirs->state = Operation::State::kCopying;
      ++copying;
      ++other->copying;
      fabric->mutex.unlock();
      std::memcpy(to->target, from->source, to->bytes);
      fabric->mutex.lock();
      --copying;
      --other->copying;
      mine->finish(Operation::State::kDone);
      theirs->finish(Operation::State::kDone);
      copied.notify_all();
      other->copied.notify_all();
    }
  }

  std::deque<OperationPtr> posted MESHSTAGE_GUARDED_BY(fabric->mutex);  // in order; few at a time
  int copying MESHSTAGE_GUARDED_BY(fabric->mutex) = 0;
  CondVar copied;
};

InProcessTransfer::~InProcessTransfer() {
  if (done_) return;
  MutexLock lock(node_->fabric->mutex);
  node_->withdraw(lock, operation_);
}

void InProcessTransfer::wait(Deadline deadline) {
  if (done_by(deadline)) return;
  const MutexLock lock(node_->fabric->mutex);
  node_->late.raise(this, std::make_exception_ptr(make_error<PeerSilent>(
                              detail::transfer_text(operation_->peer, operation_->bytes,
                                                    operation_->is_send, node_->request.rank) +
                                  ": not done by the deadline",
                              operation_->peer)));
}

bool InProcessTransfer::done_by(Deadline deadline) {
  if (done_) return true;
  MutexLock lock(node_->fabric->mutex);
  node_->check_usable();
  const auto ended = [this] {
    return operation_->state == Operation::State::kDone ||
           operation_->state == Operation::State::kFailed;
  };
  if (!operation_->changed.wait_until(lock, deadline, ended)) return false;
  if (operation_->state == Operation::State::kFailed) std::rethrow_exception(operation_->error);
  done_ = true;
  node_->late.done(this);
  return true;
}

class InProcessGroup final : public ProcessGroup {
 public:
  explicit InProcessGroup(std::shared_ptr<GroupNode> node) : node_(std::move(node)) {}
  InProcessGroup(const InProcessGroup&) = delete;
  InProcessGroup& operator=(const InProcessGroup&) = delete;
  ~InProcessGroup() override { node_->close(); }

  [[nodiscard]] int rank() const noexcept override { return node_->request.rank; }
  [[nodiscard]] int size() const noexcept override { return node_->request.world_size; }
  [[nodiscard]] bool linked(int peer) const noexcept override {
    const auto& peers = node_->request.peers;
    return std::binary_search(peers.begin(), peers.end(), peer);
  }
  std::unique_ptr<Transfer> send(int peer, std::uint64_t tag,
                                 std::span<const std::byte> bytes) override {
    return posted(true, peer, tag, bytes.data(), nullptr, bytes.size());
  }
  std::unique_ptr<Transfer> receive(int peer, std::uint64_t tag,
                                    std::span<std::byte> target) override {
    return posted(false, peer, tag, nullptr, target.data(), target.size());
  }
  void abort(std::exception_ptr cause) noexcept override { node_->abort(std::move(cause)); }
  void close() noexcept override { node_->close(); }

 private:
  std::unique_ptr<Transfer> posted(bool is_send, int peer, std::uint64_t tag,
                                   const std::byte* source, std::byte* target, std::size_t bytes) {
    check_linked(peer);
    auto operation = std::make_shared<Operation>();
    operation->is_send = is_send;
    operation->peer = peer;
    operation->tag = tag;
    operation->source = source;
    operation->target = target;
    operation->bytes = bytes;
    // The transfer first: what is posted must have somebody who takes it back.
    auto transfer = std::make_unique<InProcessTransfer>(node_, operation);
    node_->post(operation);
    return transfer;
  }
  void check_linked(int peer) const {
    if (linked(peer)) return;
    throw make_error<InvalidArgument>(
        "rank " + std::to_string(rank()) + " has no link to rank " + std::to_string(peer), peer);
  }
  const std::shared_ptr<GroupNode> node_;
};

}  // namespace

std::shared_ptr<ProcessGroup> connect_group(std::shared_ptr<Fabric> fabric,
                                            std::shared_ptr<Endpoint> endpoint,
                                            const ConnectRequest& request, Deadline deadline,
                                            const std::stop_token& stop) {
  auto node = std::make_shared<GroupNode>(std::move(fabric), std::move(endpoint), request);
  node->connect(deadline, stop);
  return std::make_shared<InProcessGroup>(std::move(node));
}

}  // namespace meshstage::in_process
