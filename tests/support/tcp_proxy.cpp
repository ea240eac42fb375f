#include "tests/support/tcp_proxy.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <deque>
#include <list>
#include <mutex>
#include <thread>
#include <utility>

#include <meshstage/core/error/error.hpp>

namespace meshstage::testing {

namespace {

using Clock = std::chrono::steady_clock;

sockaddr_in address_of(const std::string& host, std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  if (::inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) {
    throw InvalidArgument("the proxy knows IPv4 addresses alone, not " + host);
  }
  return address;
}

int new_socket() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) throw_errno("socket", "", errno);
  const int on = 1;
  (void)::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  return fd;
}

/// One direction of a connection.
struct Flow {
  struct Piece {
    std::vector<std::byte> bytes;
    Clock::time_point due;
    std::size_t written = 0;
  };
  int from = -1;
  int to = -1;
  bool to_server = false;
  std::deque<Piece> pieces;
  std::size_t queued = 0;
  bool ended = false;      // nothing more comes
  bool shut = false;       // and the other side knows
  bool full = false;       // the other side takes no more for now
  Clock::time_point free;  // when the wire has carried what it has taken
};

struct Pair {
  std::array<Flow, 2> flows;
  bool broken = false;
};

}  // namespace

class TcpProxy::Impl {
 public:
  Impl(const std::string& host, std::uint16_t port, Wire wire, std::uint16_t wanted)
      : wire_(std::move(wire)), server_(address_of(host, port)) {
    listener_ = new_socket();
    // Also a port whose former connections the kernel still remembers.
    const int on = 1;
    (void)::setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    wake_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    sockaddr_in own = address_of("127.0.0.1", wanted);
    auto* const plain = reinterpret_cast<sockaddr*>(&own);
    socklen_t length = sizeof(own);
    if (wake_ < 0 || ::bind(listener_, plain, sizeof(own)) != 0 || ::listen(listener_, 64) != 0 ||
        ::getsockname(listener_, plain, &length) != 0) {
      const int error = errno;
      ::close(listener_);
      ::close(wake_);
      throw_errno("listen", "for a proxy", error);
    }
    port_ = ntohs(own.sin_port);
    thread_ = std::thread([this] { run(); });
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    tell([this] { ending_ = true; });
    thread_.join();
    for (auto& pair : pairs_) end(pair);
    ::close(listener_);
    ::close(wake_);
  }
  template <class F>
  void tell(F&& what) {
    const std::lock_guard lock(mutex_);
    what();
    const std::uint64_t one = 1;
    (void)!::write(wake_, &one, sizeof(one));
  }
  [[nodiscard]] std::uint16_t port() const { return port_; }

  bool gone_ = false, cut_ = false;
  Wire wire_;

 private:
  static void end(Pair& pair) {
    ::close(pair.flows[0].from);
    ::close(pair.flows[0].to);
  }

  void run() {
    std::unique_lock lock(mutex_);
    while (!ending_) {
      std::vector<pollfd> wanted{{wake_, POLLIN, 0}, {listener_, POLLIN, 0}};
      auto next = Clock::time_point::max();
      const auto now = Clock::now();
      for (const auto& pair : pairs_) {
        for (const auto& flow : pair.flows) {
          // Bounded, so that a slow wire slows down who sends.
          if (!flow.ended && (gone_ || flow.queued < kRoom))
            wanted.push_back({flow.from, POLLIN, 0});
          if (flow.pieces.empty()) continue;
          if (flow.full) {
            wanted.push_back({flow.to, POLLOUT, 0});
          } else {
            next = std::min(next, flow.pieces.front().due);
          }
        }
      }
      int timeout = -1;
      if (next != Clock::time_point::max()) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(next - now).count();
        timeout = static_cast<int>(std::max<long>(left, 0));
      }
      lock.unlock();
      (void)::poll(wanted.data(), wanted.size(), timeout);
      lock.lock();
      std::uint64_t count = 0;
      (void)!::read(wake_, &count, sizeof(count));
      accept_one();
      for (auto& pair : pairs_) {
        for (auto& flow : pair.flows) pass(pair, flow);
      }
      if (std::exchange(cut_, false)) {
        for (auto& pair : pairs_) pair.broken = true;
      }
      pairs_.remove_if([](Pair& pair) {
        if (pair.broken) end(pair);
        return pair.broken;
      });
    }
  }

  void accept_one() {
    const int client = ::accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (client < 0) return;
    const int on = 1;
    (void)::setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    const int server = new_socket();
    // On loopback this is decided at once; a refusal shows when it is read.
    (void)::connect(server, reinterpret_cast<const sockaddr*>(&server_), sizeof(server_));
    Pair pair;
    pair.flows[0].from = pair.flows[1].to = client;
    pair.flows[0].to = pair.flows[1].from = server;
    pair.flows[0].to_server = true;
    pairs_.push_back(std::move(pair));
  }

  void pass(Pair& pair, Flow& flow) {
    const auto now = Clock::now();
    std::vector<std::byte> bytes(kPiece);
    if (!flow.ended && (gone_ || flow.queued < kRoom)) {
      const ssize_t n = ::recv(flow.from, bytes.data(), bytes.size(), 0);
      if (n > 0) {
        bytes.resize(static_cast<std::size_t>(n));
        if (wire_.change) wire_.change(flow.to_server, bytes);
        if (!gone_ && !bytes.empty()) take(flow, std::move(bytes), now);
      } else if (n == 0) {
        flow.ended = true;
      } else if (errno != EAGAIN && errno != EINTR && errno != ENOTCONN) {
        pair.broken = !gone_;
        flow.ended = true;
      }
    }
    if (gone_) return;
    flow.full = false;
    while (!flow.pieces.empty() && !flow.full && flow.pieces.front().due <= now) {
      auto& piece = flow.pieces.front();
      const ssize_t n = ::send(flow.to, piece.bytes.data() + piece.written,
                               piece.bytes.size() - piece.written, MSG_NOSIGNAL);
      if (n > 0) {
        piece.written += static_cast<std::size_t>(n);
        flow.queued -= static_cast<std::size_t>(n);
        if (piece.written == piece.bytes.size()) flow.pieces.pop_front();
      } else if (errno == EAGAIN || errno == ENOTCONN) {
        flow.full = true;
      } else {
        pair.broken = true;
        return;
      }
    }
    if (flow.ended && flow.pieces.empty() && !std::exchange(flow.shut, true)) {
      ::shutdown(flow.to, SHUT_WR);
      if (pair.flows[0].shut && pair.flows[1].shut) pair.broken = true;
    }
  }

  void take(Flow& flow, std::vector<std::byte> bytes, Clock::time_point now) const {
    flow.free = std::max(flow.free, now);
    if (wire_.bytes_per_second > 0) {
      flow.free +=
          std::chrono::nanoseconds(bytes.size() * 1'000'000'000ULL / wire_.bytes_per_second);
    }
    flow.queued += bytes.size();
    flow.pieces.push_back({std::move(bytes), flow.free + wire_.delay});
  }

  static constexpr std::size_t kPiece = std::size_t{16} << 10;
  static constexpr std::size_t kRoom = std::size_t{256} << 10;
  const sockaddr_in server_;
  int listener_ = -1;
  int wake_ = -1;
  std::uint16_t port_ = 0;
  bool ending_ = false;
  std::list<Pair> pairs_;
  std::mutex mutex_;
  std::thread thread_;
};

TcpProxy::TcpProxy(const std::string& host, std::uint16_t port, Wire wire,
                   std::uint16_t port_wanted)
    : impl_(std::make_unique<Impl>(host, port, std::move(wire), port_wanted)) {}
TcpProxy::~TcpProxy() = default;
std::uint16_t TcpProxy::port() const { return impl_->port(); }
void TcpProxy::vanish() {
  impl_->tell([this] { impl_->gone_ = true; });
}
void TcpProxy::cut() {
  impl_->tell([this] { impl_->cut_ = true; });
}
void TcpProxy::set(Wire wire) {
  impl_->tell([this, &wire] { impl_->wire_ = std::move(wire); });
}

}  // namespace meshstage::testing
