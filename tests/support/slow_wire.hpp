// A wire that is slow, or dead, as long as a test says: no clock, no bytes per second.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>

#include <meshstage/core/comm/transport.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::test {

/// Shared by the transports of all ranks; outlives them. Images pass it (the group "data"), or what
/// the test says. Threads: any.
class SlowWire {
 public:
  /// True for the groups, by their names, and the pairs of ranks that pass it.
  using Passes = std::function<bool(const std::string& group, int rank, int peer)>;
  explicit SlowWire(Passes passes = [](const std::string& group, int,
                                       int) { return group.starts_with("data"); })
      : passes_(std::move(passes)) {}

  enum class Pace : std::uint8_t {
    kFast,
    kSlow,    ///< Bytes move all the time, and no transfer ends.
    kSilent,  ///< Nothing moves.
  };
  void set(Pace pace) {
    const std::lock_guard lock(mutex_);
    pace_ = pace;
    changed_.notify_all();
  }
  /// Called each time that the bytes are counted of two ranks whose wire is slow. It may call
  /// set().
  std::function<void()> on_count;
  std::shared_ptr<Transport> wrap(std::shared_ptr<Transport> inner) {
    return std::make_shared<SlowTransport>(*this, std::move(inner));
  }

 private:
  /// Posts the inner transfer when it is waited for and the wire is fast; so transfers keep their
  /// order, and nothing moves before.
  class Held : public Transfer {
   public:
    using Post = std::function<std::unique_ptr<Transfer>()>;
    Held(SlowWire& wire, std::shared_ptr<const bool> over, int peer, Post post)
        : wire_(wire), over_(std::move(over)), peer_(peer), post_(std::move(post)) {}
    void wait(Deadline deadline) override {
      if (!done_by(deadline)) throw make_error<PeerSilent>("not done by the deadline", peer_);
    }
    [[nodiscard]] bool done_by(Deadline deadline) override {
      return wire_.pass_by(*over_, deadline) && posted().done_by(deadline);
    }
    void wait_while_moving(std::chrono::milliseconds silence) override {
      while (true) {
        wire_.pass(*over_, peer_, silence);
        try {
          return posted().wait_while_moving(silence);
        } catch (const PeerSilent&) {
          if (!wire_.is(Pace::kSlow)) throw;  // it has become slow at the other end
        }
      }
    }

   private:
    Transfer& posted() {
      if (!inner_) inner_ = post_();
      return *inner_;
    }
    SlowWire& wire_;
    const std::shared_ptr<const bool> over_;
    const int peer_;
    const Post post_;
    std::unique_ptr<Transfer> inner_;
  };

  class Group : public ProcessGroup {
   public:
    Group(SlowWire& wire, std::string name, std::shared_ptr<ProcessGroup> inner)
        : wire_(wire), name_(std::move(name)), inner_(std::move(inner)) {}
    [[nodiscard]] int rank() const noexcept override { return inner_->rank(); }
    [[nodiscard]] int size() const noexcept override { return inner_->size(); }
    [[nodiscard]] bool linked(int peer) const noexcept override { return inner_->linked(peer); }
    std::unique_ptr<Transfer> send(int peer, std::uint64_t tag,
                                   std::span<const std::byte> bytes) override {
      if (!wire_.passes_(name_, rank(), peer)) return inner_->send(peer, tag, bytes);
      return std::make_unique<Held>(wire_, over_, peer, [inner = inner_, peer, tag, bytes] {
        return inner->send(peer, tag, bytes);
      });
    }
    std::unique_ptr<Transfer> receive(int peer, std::uint64_t tag,
                                      std::span<std::byte> target) override {
      if (!wire_.passes_(name_, rank(), peer)) return inner_->receive(peer, tag, target);
      return std::make_unique<Held>(wire_, over_, peer, [inner = inner_, peer, tag, target] {
        return inner->receive(peer, tag, target);
      });
    }
    /// Over a slow wire each count is larger than the one before.
    [[nodiscard]] std::uint64_t moved(int peer) const override {
      if (!wire_.passes_(name_, rank(), peer) || !wire_.is(Pace::kSlow)) return counted_;
      if (wire_.on_count) wire_.on_count();
      return ++counted_;
    }
    void abort(std::exception_ptr cause) noexcept override {
      inner_->abort(std::move(cause));
      end();
    }
    void close() noexcept override {
      end();
      inner_->close();
    }

   private:
    void end() noexcept {
      const std::lock_guard lock(wire_.mutex_);
      *over_ = true;
      wire_.changed_.notify_all();
    }
    SlowWire& wire_;
    const std::string name_;
    const std::shared_ptr<ProcessGroup> inner_;
    mutable std::atomic<std::uint64_t> counted_{0};
    const std::shared_ptr<bool> over_ = std::make_shared<bool>(false);
  };

  class SlowTransport : public Transport {
   public:
    SlowTransport(SlowWire& wire, std::shared_ptr<Transport> inner)
        : wire_(wire), inner_(std::move(inner)) {}
    std::shared_ptr<ControlLinks> connect_links(const ConnectRequest& request, Store& store,
                                                Deadline deadline, std::stop_token stop) override {
      return inner_->connect_links(request, store, deadline, std::move(stop));
    }
    std::shared_ptr<ProcessGroup> connect_group(const ConnectRequest& request, Store& store,
                                                Deadline deadline, std::stop_token stop) override {
      auto group = inner_->connect_group(request, store, deadline, std::move(stop));
      const auto passes = [&](int peer) { return wire_.passes_(request.name, request.rank, peer); };
      if (std::none_of(request.peers.begin(), request.peers.end(), passes)) return group;
      return std::make_shared<Group>(wire_, request.name, std::move(group));
    }

   private:
    SlowWire& wire_;
    const std::shared_ptr<Transport> inner_;
  };

  [[nodiscard]] bool is(Pace pace) {
    const std::lock_guard lock(mutex_);
    return pace_ == pace;
  }
  /// True when the wire is fast or the group is over; false at the deadline.
  [[nodiscard]] bool pass_by(const bool& over, Deadline deadline) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, deadline.time(), [&] { return pace_ == Pace::kFast || over; });
  }
  /// Returns when the wire is fast or the group is over.
  void pass(const bool& over, int peer, std::chrono::milliseconds silence) {
    std::unique_lock lock(mutex_);
    auto quiet = Deadline::after(silence);
    while (pace_ != Pace::kFast && !over) {
      changed_.wait_until(lock, quiet.time());
      if (!quiet.expired()) continue;
      if (pace_ == Pace::kSilent) throw make_error<PeerSilent>("nothing moved", peer);
      quiet = Deadline::after(silence);
    }
  }

  const Passes passes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  Pace pace_ = Pace::kFast;
};

}  // namespace meshstage::test
