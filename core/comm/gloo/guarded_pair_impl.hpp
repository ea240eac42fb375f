#pragma once
#include <gloo/transport/tcp/context.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/tcp/pair.h>
#include <linux/tcp.h>  // glibc's own has no tcpi_bytes_acked
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <utility>

#include <meshstage/core/comm/gloo/module_table_impl.hpp>
#include <meshstage/core/comm/greeting_time_impl.hpp>

namespace meshstage::gloo_module {

class GuardedPair;

/// One connection to a pair's listening socket that has not yet said the pair's nonce.
class Stranger final : public ::gloo::transport::tcp::Handler {
 public:
  void handleEvents(int events) override;

 private:
  friend class GuardedPair;
  /// Hears of the timer.
  class Late final : public ::gloo::transport::tcp::Handler {
   public:
    explicit Late(Stranger& stranger) : stranger_(stranger) {}
    void handleEvents(int events) override;

   private:
    Stranger& stranger_;
  };
  GuardedPair* pair = nullptr;
  Late late{*this};
  int fd = -1;              // -1: this place is free
  int timer = -1;           // expires detail::kGreetingTime after the connection was accepted
  std::uint64_t since = 0;  // counts accepted connections: the lowest is the oldest
  std::size_t heard = 0;    // bytes of the nonce
};

/// Gloo's connection to one peer, made safe: an error fails this connection alone, where Gloo would
/// end the process, and only the peer can take the connection.
///
/// Gloo's own thread calls handleEvents() of each pair, and its exceptions are caught nowhere. So
/// std::terminate follows when a peer resets its connection before it was accepted (it was killed,
/// or gave up connecting). It also follows when a peer sends a message longer than its receive, a
/// message without a receive, or bytes that are no message. Here these make the pair fail, as a
/// broken connection does: a thread that waits for the pair, or for a transfer of it, gets the
/// exception.
///
/// Gloo takes the first connection to a listening pair for the peer and closes the listening
/// socket, so a port scanner would keep the peer out. Here the connecting side begins with the
/// nonce that the listening side published beside its address. A stranger's connection ends at its
/// first wrong byte. A silent one ends after detail::kGreetingTime, when more than a few come after
/// it, or when the peer has come. Until then the pair goes on listening.
class GuardedPair final : public ::gloo::transport::tcp::Pair {
 public:
  GuardedPair(::gloo::transport::tcp::Context* context, ::gloo::transport::tcp::Device* device,
              int rank, std::chrono::milliseconds timeout, const Nonce& own)
      : Pair(context, device, rank, timeout), own_(own) {
    for (Stranger& s : strangers_) s.pair = this;
    // Gloo's own queue has room for one, which strangers would fill.
    const std::lock_guard lock(m_);
    if (state_ == LISTENING) ::listen(fd_, SOMAXCONN);
  }
  ~GuardedPair() override {
    const std::lock_guard lock(m_);
    drop_strangers();
  }

  /// Sets the nonce that the connecting side sends first. Call it before connect().
  void set_peer_nonce(const Nonce& nonce) {
    const std::lock_guard lock(m_);
    peers_ = nonce;
  }

  /// A count that rises with the bytes that came, and with those that the peer's kernel has taken.
  /// The events alone would not do: over a slow wire the kernel tells of room in its buffer when a
  /// third of it is free, and that may be a megabyte. Any thread may ask.
  [[nodiscard]] std::uint64_t moved() noexcept {
    if (const std::unique_lock lock(m_, std::try_to_lock); lock && state_ == CONNECTED) {
      tcp_info info{};
      socklen_t length = sizeof(info);
      if (::getsockopt(fd_, IPPROTO_TCP, TCP_INFO, &info, &length) == 0) {
        acked_.store(info.tcpi_bytes_acked, std::memory_order_relaxed);
      }
    }
    return moved_.load(std::memory_order_relaxed) + acked_.load(std::memory_order_relaxed);
  }

  /// Runs on Gloo's thread. Does what Pair's does, and catches. The lock is held through both,
  /// because a thread of ours that closes the pair holds it while it waits for Gloo's thread.
  void handleEvents(int events) override {
    guarded([&] {
      if (state_ == CONNECTED) {
        // Bytes are there to be read, or there is room where there was none.
        moved_.fetch_add(1, std::memory_order_relaxed);
        handleReadWrite(events);
      } else if (state_ == LISTENING) {
        accept_stranger();
      } else if (state_ == CONNECTING) {
        say_nonce();
        handleConnecting();
      }
    });
  }

 private:
  friend class Stranger;
  static constexpr std::size_t kStrangers = 8;

  template <class F>
  void guarded(F&& f) {
    const std::unique_lock lock(m_, std::try_to_lock);
    if (!lock) return;  // The event shows again.
    try {
      f();
    } catch (const std::exception&) {
      fail(std::current_exception());
    }
  }

  void changeState(state next) noexcept override {
    if (next != LISTENING) drop_strangers();
    Pair::changeState(next);
  }

  void accept_stranger() {
    const int fd = ::accept4(fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;  // It was reset before; the pair listens on.
    Stranger& place =
        *std::min_element(strangers_.begin(), strangers_.end(),
                          [](const Stranger& a, const Stranger& b) { return a.since < b.since; });
    drop(place);
    place.fd = fd;
    place.since = ++accepted_;
    place.heard = 0;
    device_->registerDescriptor(fd, EPOLLIN, &place);
    limit(place);
  }

  /// Without a time limit no stranger stays.
  void limit(Stranger& stranger) {
    const int timer = ::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    itimerspec once{};
    once.it_value.tv_sec =
        std::chrono::duration_cast<std::chrono::seconds>(detail::kGreetingTime).count();
    if (timer < 0 || ::timerfd_settime(timer, 0, &once, nullptr) != 0) {
      if (timer >= 0) ::close(timer);
      return drop(stranger);
    }
    stranger.timer = timer;
    device_->registerDescriptor(timer, EPOLLIN, &stranger.late);
  }
  void end_limit(Stranger& stranger) noexcept {
    if (stranger.timer < 0) return;
    device_->unregisterDescriptor(stranger.timer, &stranger.late);
    ::close(std::exchange(stranger.timer, -1));
  }
  void drop_late(Stranger& stranger) {
    if (stranger.timer < 0) return;  // an event of a timer that has ended
    listen_to(stranger);             // a busy loop may see the nonce and the timer at once
    drop(stranger);
  }

  void listen_to(Stranger& stranger) {
    if (stranger.fd < 0 || state_ != LISTENING) return;  // an event of a connection that has ended
    std::array<unsigned char, kNonceBytes> bytes{};
    const std::size_t missing = kNonceBytes - stranger.heard;
    const ssize_t n = ::recv(stranger.fd, bytes.data(), missing, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    const auto count = static_cast<std::size_t>(std::max<ssize_t>(n, 0));
    const auto due = own_.begin() + static_cast<std::ptrdiff_t>(stranger.heard);
    if (count == 0 || !std::equal(bytes.begin(), bytes.begin() + n, due)) return drop(stranger);
    stranger.heard += count;
    if (stranger.heard < kNonceBytes) return;
    // The peer: from here on as Gloo does with the first connection.
    const int peer = std::exchange(stranger.fd, -1);
    stranger.since = 0;
    device_->unregisterDescriptor(peer, &stranger);
    end_limit(stranger);
    device_->unregisterDescriptor(fd_, this);
    ::close(fd_);
    fd_ = peer;
    handleConnected();
  }

  void say_nonce() const {
    int error = 0;
    socklen_t length = sizeof(error);
    if (::getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &length) != 0) error = errno;
    if (error == 0) {
      // A new connection's buffer has room for so few bytes.
      const ssize_t n = ::send(fd_, peers_.data(), peers_.size(), MSG_NOSIGNAL);
      if (n == static_cast<ssize_t>(peers_.size())) return;
      error = n < 0 ? errno : EAGAIN;
    }
    throw std::runtime_error("connect " + peer_.str() + ": " +
                             std::generic_category().message(error));
  }

  void drop(Stranger& stranger) noexcept {
    if (stranger.fd < 0) return;
    device_->unregisterDescriptor(stranger.fd, &stranger);
    ::close(std::exchange(stranger.fd, -1));
    end_limit(stranger);
    stranger.since = 0;
  }
  void drop_strangers() noexcept {
    for (Stranger& s : strangers_) drop(s);
  }

  void fail(std::exception_ptr cause) {
    if (ex_ != nullptr || state_ == CLOSED) return;
    if (state_ == LISTENING && fd_ >= 0) {
      // Accepted, but not yet known to the loop, which Pair would take it from.
      ::close(fd_);
      fd_ = -1;
    }
    // The receive whose message had begun is in no list that Pair tells: put it back.
    if (rx_.ubuf) {
      localPendingRecv_[rx_.preamble.slot].emplace_front(rx_.ubuf, rx_.offset, rx_.nbytes);
    }
    signalException(std::move(cause));
  }

  std::atomic<std::uint64_t> moved_{0};  // events of the connection
  std::atomic<std::uint64_t> acked_{0};  // bytes
  const Nonce own_;
  // Guarded by m_. It is Gloo's own std::mutex, which clang's analysis does not know.
  Nonce peers_{};
  std::array<Stranger, kStrangers> strangers_;
  std::uint64_t accepted_ = 0;
};

inline void Stranger::handleEvents(int /*events*/) {
  pair->guarded([this] { pair->listen_to(*this); });
}

inline void Stranger::Late::handleEvents(int /*events*/) {
  stranger_.pair->guarded([this] { stranger_.pair->drop_late(stranger_); });
}

}  // namespace meshstage::gloo_module
