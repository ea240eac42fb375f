#include <xxhash.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/origin.hpp>
#include <meshstage/core/comm/empty_transfer_impl.hpp>
#include <meshstage/core/comm/gloo/address_impl.hpp>
#include <meshstage/core/comm/gloo/deadline_timer_impl.hpp>
#include <meshstage/core/comm/gloo/group.hpp>
#include <meshstage/core/comm/gloo/hello_impl.hpp>
#include <meshstage/core/comm/gloo/module_table_impl.hpp>
#include <meshstage/core/comm/late_transfer_impl.hpp>
#include <meshstage/core/comm/while_moving.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

namespace {

using gloo_address::Address;
using gloo_address::Hello;
using gloo_address::kHelloSlot;
using gloo_module::ErrorText;
using gloo_module::Table;

class GlooTransfer;

std::uint64_t digest(const std::string& text) { return XXH3_64bits(text.data(), text.size()); }

/// Everything of a group, shared with its transfers, which may outlive it.
class GlooState : public std::enable_shared_from_this<GlooState> {
 public:
  GlooState(const Table& module, const ConnectRequest& request)
      : table(module), rank(request.rank), size(request.world_size), peers(request.peers) {
    std::sort(peers.begin(), peers.end());
    const std::array<std::uint64_t, 4> parts{digest(request.job), request.generation,
                                             digest(request.name),
                                             static_cast<std::uint64_t>(request.world_size)};
    salt = XXH3_64bits(parts.data(), sizeof(parts));
  }
  GlooState(const GlooState&) = delete;
  GlooState& operator=(const GlooState&) = delete;

  [[nodiscard]] bool linked(int peer) const noexcept {
    return std::binary_search(peers.begin(), peers.end(), peer);
  }
  /// Tag and length, and which group this is, in one number.
  [[nodiscard]] std::uint64_t slot(std::uint64_t tag, std::size_t bytes) const {
    const std::array<std::uint64_t, 3> parts{salt, tag, bytes};
    return XXH3_64bits(parts.data(), sizeof(parts));
  }

  std::unique_ptr<Transfer> post_send(int peer, std::uint64_t slot,
                                      std::span<const std::byte> bytes);
  std::unique_ptr<Transfer> post_receive(int peer, std::uint64_t slot, std::span<std::byte> target);
  [[nodiscard]] std::uint64_t moved(int peer);
  void abort(std::exception_ptr reason) noexcept;
  /// Throws that the connection to `peer` has ended, and lets all other transfers throw that, too:
  /// those to `peer` are given up next, and that must not become the reason which the others see.
  [[noreturn]] void throw_lost(int peer, const std::string& what);
  void close() noexcept;

  const Table& table;
  gloo_module::Group* group = nullptr;
  const int rank;
  const int size;
  std::vector<int> peers;  // ascending
  std::uint64_t salt = 0;
  DeadlineTimer timer;

  const ProcessOrigin origin;

  Mutex mutex;  // Nothing that blocks is called under it.
  CondVar changed;
  int users MESHSTAGE_GUARDED_BY(mutex) = 0;  // threads inside the module
  bool closing MESHSTAGE_GUARDED_BY(mutex) = false;
  bool closed MESHSTAGE_GUARDED_BY(mutex) = false;
  bool ended_by_close MESHSTAGE_GUARDED_BY(mutex) = false;  // close() came before any abort
  std::exception_ptr cause MESHSTAGE_GUARDED_BY(mutex);
  detail::LateTransfer late MESHSTAGE_GUARDED_BY(mutex);
  std::map<gloo_module::Transfer*, GlooTransfer*> live MESHSTAGE_GUARDED_BY(mutex);

  /// A thread's stay inside the module; close() waits until all have left.
  class Stay {
   public:
    /// Throws the cause of an abort, and after close() Cancelled; InvalidState to a thread that
    /// `posts`.
    explicit Stay(GlooState& s, bool posts = false) : state_(s) {
      const MutexLock lock(s.mutex);
      if (posts && s.ended_by_close) throw InvalidState("the process group was closed");
      if (s.cause) std::rethrow_exception(s.cause);
      ++s.users;
    }
    Stay(const Stay&) = delete;
    Stay& operator=(const Stay&) = delete;
    ~Stay() {
      const MutexLock lock(state_.mutex);
      if (--state_.users == 0) state_.changed.notify_all();
    }

   private:
    GlooState& state_;
  };

 private:
  /// `post(&error)` calls the module.
  template <class Post>
  std::unique_ptr<Transfer> posted(int peer, std::size_t bytes, bool is_send, Post post);
};

class GlooTransfer final : public Transfer {
 public:
  GlooTransfer(std::shared_ptr<GlooState> state, gloo_module::Transfer* handle, int peer,
               std::size_t bytes, bool is_send)
      : state_(std::move(state)), handle_(handle), peer_(peer), bytes_(bytes), is_send_(is_send) {}
  GlooTransfer(const GlooTransfer&) = delete;
  GlooTransfer& operator=(const GlooTransfer&) = delete;
  ~GlooTransfer() override;

  void wait(Deadline deadline) override;
  [[nodiscard]] bool done_by(Deadline deadline) override;
  void wait_while_moving(std::chrono::milliseconds silence) override;

 private:
  friend class GlooState;
  [[noreturn]] void throw_late(const std::string& when);
  [[nodiscard]] std::string what() const {
    return detail::transfer_text(peer_, bytes_, is_send_, state_->rank);
  }
  const std::shared_ptr<GlooState> state_;
  gloo_module::Transfer* handle_;  // guarded by the state's mutex; null once released
  bool done_ = false;              // the waiting thread's own
  const int peer_;
  const std::size_t bytes_;
  const bool is_send_;
};

GlooTransfer::~GlooTransfer() {
  if (!state_->origin.is_here()) return;
  gloo_module::Transfer* handle = nullptr;
  std::exception_ptr reason;
  {
    const MutexLock lock(state_->mutex);
    handle = std::exchange(handle_, nullptr);
    if (handle == nullptr) return;  // complete, or released by close()
    state_->live.erase(handle);
    ++state_->users;
    reason = state_->late.reason([&] { return "a transfer was given up: " + what(); });
  }
  // Half of a message may be on the wire, so the connection is of no use any more. Closed first, so
  // that Gloo's thread does not spin on bytes that have nowhere to go.
  state_->abort(std::move(reason));
  state_->table.close_pairs(state_->group);
  state_->table.release(handle);
  const MutexLock lock(state_->mutex);
  if (--state_->users == 0) state_->changed.notify_all();
}

void GlooTransfer::throw_late(const std::string& when) {
  const MutexLock lock(state_->mutex);
  state_->late.raise(this,
                     std::make_exception_ptr(make_error<PeerSilent>(what() + ": " + when, peer_)));
}

void GlooTransfer::wait(Deadline deadline) {
  if (!done_by(deadline)) throw_late("not done by the deadline");
}

void GlooTransfer::wait_while_moving(std::chrono::milliseconds silence) {
  if (done_) return;
  const bool done = detail::done_while_moving(
      silence, [this](Deadline deadline) { return done_by(deadline); },
      [this] { return state_->moved(peer_); });
  if (!done) throw_late("nothing moved for " + std::to_string(silence.count()) + " ms");
}

bool GlooTransfer::done_by(Deadline deadline) {
  if (done_) return true;
  const GlooState::Stay stay(*state_);
  // While this thread stays, close() does not release the handle, and nobody else does.
  const auto& table = state_->table;
  const auto token =
      state_->timer.arm(deadline, [&table, handle = handle_] { table.interrupt(handle); });
  ErrorText error{};
  auto result = gloo_module::kInterrupted;
  bool ended = false;
  while (!ended) {
    result = table.wait(handle_, &error);
    const MutexLock lock(state_->mutex);
    // An interrupt that came after an earlier wait had ended is left over: wait again.
    ended = result != gloo_module::kInterrupted || state_->cause || deadline.expired();
  }
  state_->timer.disarm(token);
  {
    const MutexLock lock(state_->mutex);
    if (result == gloo_module::kDone) {
      state_->live.erase(handle_);
      table.release(std::exchange(handle_, nullptr));
      done_ = true;
      state_->late.done(this);
      return true;
    }
    if (state_->cause) std::rethrow_exception(state_->cause);
  }
  if (result == gloo_module::kInterrupted) return false;
  state_->throw_lost(peer_, what() + ": " + error.text);
}

template <class Post>
std::unique_ptr<Transfer> GlooState::posted(int peer, std::size_t bytes, bool is_send, Post post) {
  const Stay stay(*this, true);
  // All memory first: what the module has posted must have somebody who takes it back.
  auto result = std::make_unique<GlooTransfer>(shared_from_this(), nullptr, peer, bytes, is_send);
  std::map<gloo_module::Transfer*, GlooTransfer*> entry{{nullptr, result.get()}};
  auto node = entry.extract(entry.begin());
  ErrorText error{};
  gloo_module::Transfer* const handle = post(&error);
  if (handle == nullptr) throw_lost(peer, "rank " + std::to_string(peer) + ": " + error.text);
  node.key() = handle;
  const MutexLock lock(mutex);
  result->handle_ = handle;
  live.insert(std::move(node));
  return result;
}

std::unique_ptr<Transfer> GlooState::post_send(int peer, std::uint64_t slot,
                                               std::span<const std::byte> bytes) {
  return posted(peer, bytes.size(), true, [&](ErrorText* error) {
    return table.send(group, peer, slot, bytes.data(), bytes.size(), error);
  });
}

std::unique_ptr<Transfer> GlooState::post_receive(int peer, std::uint64_t slot,
                                                  std::span<std::byte> target) {
  return posted(peer, target.size(), false, [&](ErrorText* error) {
    return table.receive(group, peer, slot, target.data(), target.size(), error);
  });
}

std::uint64_t GlooState::moved(int peer) {
  const Stay stay(*this);
  return table.moved(group, peer);
}

void GlooState::abort(std::exception_ptr reason) noexcept {
  const MutexLock lock(mutex);
  if (!cause) cause = std::move(reason);
  for (const auto& [handle, transfer] : live) table.interrupt(handle);
}

void GlooState::throw_lost(int peer, const std::string& what) {
  abort(std::make_exception_ptr(make_error<PeerLost>(what, peer)));
  const MutexLock lock(mutex);
  std::rethrow_exception(cause);  // an earlier one stays
}

void GlooState::close() noexcept {
  MutexLock lock(mutex);
  if (std::exchange(closing, true)) {
    changed.wait(lock, [this]() MESHSTAGE_REQUIRES(mutex) { return closed; });
    return;
  }
  ended_by_close = cause == nullptr;
  if (!cause) cause = std::make_exception_ptr(Cancelled("the process group was closed"));
  for (const auto& [handle, transfer] : live) table.interrupt(handle);
  lock.unlock();
  if (group != nullptr) table.close_pairs(group);
  lock.lock();
  changed.wait(lock, [this]() MESHSTAGE_REQUIRES(mutex) { return users == 0; });
  for (const auto& [handle, transfer] : live) {
    transfer->handle_ = nullptr;
    table.release(handle);
  }
  live.clear();
  lock.unlock();
  timer.stop();  // first: its callbacks use the group
  if (group != nullptr) table.destroy(group);
  lock.lock();
  group = nullptr;
  closed = true;
  changed.notify_all();
}

class GlooGroup final : public ProcessGroup {
 public:
  explicit GlooGroup(std::shared_ptr<GlooState> state) : state_(std::move(state)) {}
  GlooGroup(const GlooGroup&) = delete;
  GlooGroup& operator=(const GlooGroup&) = delete;
  ~GlooGroup() override { state_->close(); }

  [[nodiscard]] int rank() const noexcept override { return state_->rank; }
  [[nodiscard]] int size() const noexcept override { return state_->size; }
  [[nodiscard]] bool linked(int peer) const noexcept override { return state_->linked(peer); }
  std::unique_ptr<Transfer> send(int peer, std::uint64_t tag,
                                 std::span<const std::byte> bytes) override {
    check_linked(peer);
    if (bytes.empty()) return empty();
    return state_->post_send(peer, state_->slot(tag, bytes.size()), bytes);
  }
  std::unique_ptr<Transfer> receive(int peer, std::uint64_t tag,
                                    std::span<std::byte> target) override {
    check_linked(peer);
    if (target.empty()) return empty();
    return state_->post_receive(peer, state_->slot(tag, target.size()), target);
  }
  [[nodiscard]] std::uint64_t moved(int peer) const override {
    check_linked(peer);
    return state_->moved(peer);
  }
  void abort(std::exception_ptr cause) noexcept override { state_->abort(std::move(cause)); }
  void close() noexcept override { state_->close(); }

 private:
  void check_linked(int peer) const {
    if (linked(peer)) return;
    throw make_error<InvalidArgument>(
        "rank " + std::to_string(rank()) + " has no link to rank " + std::to_string(peer), peer);
  }
  [[nodiscard]] std::unique_ptr<Transfer> empty() const {
    const GlooState::Stay stay(*state_, true);  // throws what an abort or close left
    return std::make_unique<detail::EmptyTransfer>();
  }
  const std::shared_ptr<GlooState> state_;
};

constexpr std::size_t kMaxAddress = 512;

/// The making of one group; holds what a stop or a deadline must reach while it blocks.
class Connecting {
 public:
  Connecting(const Table& module, const ConnectRequest& request, Deadline deadline,
             std::stop_token stop)
      : request_(request),
        deadline_(deadline),
        stop_(std::move(stop)),
        state_(new GlooState(module, request), DeleteHere{}),
        nonces_(gloo_address::random_nonces(std::max<std::size_t>(state_->peers.size(), 1))) {}

  std::shared_ptr<ProcessGroup> run(const std::string& host, Store& store) {
    // Closes the state if anything throws.
    std::shared_ptr<GlooGroup> result(new GlooGroup(state_), DeleteHere{});
    ErrorText error{};
    state_->group =
        state_->table.open(host.c_str(), state_->rank, state_->size, state_->peers.data(),
                           nonces_.front().data(), state_->peers.size(), &error);
    if (state_->group == nullptr) {
      throw IoError("Gloo cannot listen on " + host + ": " + error.text);
    }
    publish(store);
    const std::stop_callback on_stop(stop_, [this] { give_up(); });
    const auto token = state_->timer.arm(deadline_, [this] { give_up(); });
    for (const int peer : state_->peers) connect(store, peer);
    greet();
    state_->timer.disarm(token);
    return result;
  }

 private:
  [[nodiscard]] std::string key(int from, int to) const {
    return request_.store_prefix + "/" + request_.name + "/" + std::to_string(from) + "/" +
           std::to_string(to);
  }

  /// From the thread that asks for a stop, or the timer's.
  void give_up() {
    state_->table.close_pairs(state_->group);
    state_->abort(std::make_exception_ptr(Cancelled("connecting was given up")));
  }

  void publish(Store& store) {
    for (std::size_t i = 0; i < state_->peers.size(); ++i) {
      const int peer = state_->peers[i];
      Address own{std::vector<unsigned char>(kMaxAddress), nonces_[i]};
      own.bytes.resize(
          state_->table.address(state_->group, peer, own.bytes.data(), own.bytes.size()));
      store.set(key(state_->rank, peer), own.encode(), deadline_);
    }
  }

  void connect(Store& store, int peer) {
    std::string text;
    try {
      text = store.wait_for(key(peer, state_->rank), deadline_, stop_);
    } catch (const Timeout&) {
      throw_late(peer);
    }
    const auto address = Address::decode(text, peer);
    ErrorText error{};
    const auto result = state_->table.connect(state_->group, peer, address.bytes.data(),
                                              address.bytes.size(), address.nonce.data(), &error);
    if (stop_.stop_requested()) throw Cancelled("connecting was given up");
    if (deadline_.expired()) throw_late(peer);
    if (result != gloo_module::kDone) {
      throw make_error<PeerLost>("cannot connect to rank " + std::to_string(peer) + " for " +
                                     request_.name + ": " + error.text,
                                 peer);
    }
  }

  [[noreturn]] void throw_late(int peer) const {
    throw make_error<Timeout>("rank " + std::to_string(peer) + " did not connect for " +
                                  request_.name + " by the deadline",
                              peer);
  }

  void greet() {
    std::vector<Hello> out(state_->peers.size());
    std::vector<Hello> in(state_->peers.size());
    std::vector<std::unique_ptr<Transfer>> posted;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const int peer = state_->peers[i];
      out[i] = hello(state_->rank, peer);
      posted.push_back(
          state_->post_receive(peer, kHelloSlot, std::as_writable_bytes(std::span(&in[i], 1))));
      posted.push_back(state_->post_send(peer, kHelloSlot, std::as_bytes(std::span(&out[i], 1))));
    }
    for (std::size_t i = 0; i < posted.size(); ++i) {
      const int peer = state_->peers[i / 2];
      try {
        posted[i]->wait(deadline_);
      } catch (const Cancelled&) {
        if (!stop_.stop_requested()) throw_late(peer);
        throw;
      } catch (const PeerSilent&) {
        throw_late(peer);
      }
      if (i % 2 == 0) check(in[i / 2], peer);
    }
  }

  [[nodiscard]] Hello hello(int from, int to) const {
    Hello h;
    h.job = digest(request_.job);
    h.generation = request_.generation;
    h.name = digest(request_.name);
    h.from = from;
    h.to = to;
    h.world_size = request_.world_size;
    return h;
  }

  void check(const Hello& got, int peer) const {
    const Hello want = hello(peer, state_->rank);
    if (got.magic == want.magic && got.version != want.version) {
      throw make_error<InvalidState>(
          "the process that connected as rank " + std::to_string(peer) + " for " + request_.name +
              " greets with version " + std::to_string(got.version) + ", this one with version " +
              std::to_string(want.version) + "; run the same build on every rank",
          peer);
    }
    const char* differs = nullptr;
    if (got.magic != want.magic) {
      differs = "greeting";
    } else if (got.job != want.job) {
      differs = "job";
    } else if (got.generation != want.generation) {
      differs = "generation";
    } else if (got.name != want.name) {
      differs = "name";
    } else if (got.from != want.from || got.to != want.to) {
      differs = "rank";
    } else if (got.world_size != want.world_size) {
      differs = "world size";
    }
    if (differs == nullptr) return;
    throw make_error<InvalidState>("the process that connected as rank " + std::to_string(peer) +
                                       " for " + request_.name + " has another " + differs,
                                   peer);
  }

  const ConnectRequest& request_;
  const Deadline deadline_;
  const std::stop_token stop_;
  const std::shared_ptr<GlooState> state_;
  const std::vector<gloo_module::Nonce> nonces_;  // one for each peer
};

}  // namespace

std::shared_ptr<ProcessGroup> connect_gloo_group(const Table& module, const std::string& host,
                                                 const ConnectRequest& request, Store& store,
                                                 Deadline deadline, std::stop_token stop) {
  check_request(request);
  return Connecting(module, request, deadline, std::move(stop)).run(host, store);
}

}  // namespace meshstage
