#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <random>
#include <system_error>

#include <meshstage/core/comm/socket/links_impl.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

namespace socket_links {

SocketLinks::SocketLinks(const LinkOptions& options, const ConnectRequest& request)
    : options_(options), request_(request) {
  std::sort(request_.peers.begin(), request_.peers.end());
  epoll_ = Descriptor(::epoll_create1(EPOLL_CLOEXEC));
  wake_ = Descriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll_.valid() || !wake_.valid()) throw_errno("epoll_create1, eventfd", "", errno);
  if (!watch(wake_.get(), EPOLLIN, EPOLL_CTL_ADD)) throw_errno("epoll_ctl", "", errno);
}
bool SocketLinks::watch(int fd, std::uint32_t events, int operation) noexcept {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  return ::epoll_ctl(epoll_.get(), operation, fd, &event) == 0;
}

void SocketLinks::wake() noexcept {
  const std::uint64_t one = 1;
  // Full means that the thread is about to wake anyway.
  (void)!::write(wake_.get(), &one, sizeof(one));
}

void SocketLinks::connect(const std::string& host, Store& store, Deadline deadline,
                          std::stop_token stop) {
  if (!request_.peers.empty() && request_.peers.back() > rank()) {
    std::random_device random;
    nonce_ = std::uint64_t{random()} << 32 | random();
    listener_ = net::listen_on(host);
    if (!watch(listener_.get(), EPOLLIN, EPOLL_CTL_ADD)) throw_errno("epoll_ctl", "", errno);
    store.set(key(rank()), net::address_of(listener_.get()) + " " + std::to_string(nonce_));
  }
  thread_ = std::thread([this] { run(); });
  // A peer that goes meanwhile ends the wait for the others' addresses too.
  const std::stop_callback chain(stop, [this] { failed_.request_stop(); });
  for (const int peer : request_.peers) {
    if (peer > rank()) continue;
    std::string address;
    try {
      address = store.wait_for(key(peer), deadline, failed_.get_token());
    } catch (const Cancelled&) {
      const std::lock_guard lock(mutex_);
      if (failure_) std::rethrow_exception(failure_);
      throw;
    } catch (const Timeout&) {
      throw make_error<Timeout>("rank " + std::to_string(peer) + " did not come for " +
                                    request_.name + " by the deadline",
                                peer);
    }
    const std::size_t nonce_at = address.find_last_of(' ') + 1;
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
    try {
      Connection c;
      c.nonce = std::stoull(address.substr(nonce_at));
      c.fd = net::begin_connect(address);
      c.state = Connection::State::kConnecting;
      c.peer = peer;
      const int fd = c.fd.get();
      if (!watch(fd, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD)) throw_errno("epoll_ctl", "", errno);
      connections_.emplace(fd, std::move(c));
    } catch (const IoError& e) {
      throw make_error<PeerLost>("cannot connect to rank " + std::to_string(peer) + ": " + e.what(),
                                 peer);
    } catch (const std::logic_error&) {  // of stoull
      throw make_error<CorruptData>(
          "the address of rank " + std::to_string(peer) + " is \"" + address + "\"", peer);
    }
  }
  std::unique_lock lock(mutex_);
  const auto done = [this] { return failure_ || up_.size() == request_.peers.size(); };
  if (deadline.is_never()) {
    changed_.wait(lock, stop, done);
  } else {
    changed_.wait_until(lock, stop, deadline.time(), done);
  }
  if (failure_) std::rethrow_exception(failure_);
  if (up_.size() != request_.peers.size()) {
    if (stop.stop_requested()) throw Cancelled("connecting was given up");
    std::string missing;
    int first = kNobody;
    for (const int peer : request_.peers) {
      if (up_.contains(peer)) continue;
      missing += (missing.empty() ? "" : ", ") + std::to_string(peer);
      if (first == kNobody) first = peer;
    }
    throw make_error<Timeout>("did not connect for " + request_.name + " by the deadline: rank " +
                                  missing +
                                  (last_refusal_.empty() ? "" : " (" + last_refusal_ + ")"),
                              first);
  }
  connecting_ = false;
  listener_.reset();  // leaves epoll with its last descriptor
}

void SocketLinks::send(int peer, std::span<const std::byte> message) {
  if (!std::binary_search(request_.peers.begin(), request_.peers.end(), peer)) {
    throw make_error<InvalidArgument>(
        "rank " + std::to_string(rank()) + " has no link to rank " + std::to_string(peer), peer);
  }
  if (message.size() > kMaxMessageBytes) {
    throw InvalidArgument("a control message has at most " + std::to_string(kMaxMessageBytes) +
                          " bytes, this one has " + std::to_string(message.size()));
  }
  {
    const std::lock_guard lock(mutex_);
    if (closing_) return;
    const auto c = find_up(peer);
    if (c == connections_.end()) return;  // lost; on_lost tells
    queue(c->second, FrameType::kMessage, message);
  }
  wake();
}

void SocketLinks::close() noexcept {
  deliveries_.stop();
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake();
  const std::lock_guard lock(joining_);
  if (thread_.joinable()) thread_.join();
  const std::lock_guard state(mutex_);
  connections_.clear();
  listener_.reset();
}

void SocketLinks::run() {
  pthread_setname_np(pthread_self(), "ms-links");
  std::array<epoll_event, 64> events{};
  std::unique_lock lock(mutex_);
  bool more = false;  // to deliver
  while (!closing_) {
    const int timeout = more ? 0 : milliseconds_to_next_tick();
    lock.unlock();
    const int count = ::epoll_wait(epoll_.get(), events.data(), events.size(), timeout);
    lock.lock();
    for (int i = 0; i < count; ++i) {
      const auto& event = events[static_cast<std::size_t>(i)];
      handle(event.data.fd, event.events);
    }
    tick();
    for (auto& [fd, connection] : connections_) {
      if (!connection.out.empty()) flush(connection);
    }
    lock.unlock();
    // A few at a time, so that a flood of messages does not hold up the heartbeats.
    constexpr int kBatch = 64;
    more = true;
    for (int i = 0; more && i < kBatch; ++i) more = deliveries_.deliver_one();
    lock.lock();
  }
  say_goodbye();
}

int SocketLinks::milliseconds_to_next_tick() const {
  auto next = Clock::time_point::max();
  for (const auto& [fd, c] : connections_) {
    const bool is_up = c.state == Connection::State::kUp;
    if (is_up) next = std::min(next, c.sent + options_.heartbeat_interval);
    if (is_up || c.peer == kNobody) next = std::min(next, c.heard + options_.silence_deadline);
  }
  if (next == Clock::time_point::max()) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(next - Clock::now()).count();
  constexpr long kLongest = 60'000;
  return static_cast<int>(std::clamp<long>(left, 0, kLongest));
}

void SocketLinks::tick() {
  const auto now = Clock::now();
  // If this process itself was stopped, or starved, its peers are not to blame: they get the whole
  // deadline again.
  if (now - last_tick_ > options_.silence_deadline / 2) {
    for (auto& [fd, c] : connections_) c.heard = now;
  }
  last_tick_ = now;
  for (auto entry = connections_.begin(); entry != connections_.end();) {
    const auto c = entry++;
    Connection& connection = c->second;
    const bool is_up = connection.state == Connection::State::kUp;
    if (now - connection.heard > options_.silence_deadline) {
      if (is_up || connection.peer == kNobody) {
        drop(c, LostReason::kSilent,
             "nothing heard for " + std::to_string(options_.silence_deadline.count()) + " ms");
      }
    } else if (is_up && now - connection.sent >= options_.heartbeat_interval) {
      // Behind unsent bytes it would tell the peer nothing that they do not.
      if (connection.out.empty()) queue(connection, FrameType::kHeartbeat, {});
      connection.sent = now;
    }
  }
}

void SocketLinks::handle(int fd, std::uint32_t events) {
  if (fd == wake_.get()) {
    std::uint64_t count = 0;
    (void)!::read(wake_.get(), &count, sizeof(count));
    return;
  }
  if (listener_.valid() && fd == listener_.get()) return accept_all();
  const auto c = connections_.find(fd);
  if (c == connections_.end()) return;  // dropped in this round
  Connection& connection = c->second;
  if (connection.state == Connection::State::kConnecting) {
    if (const int error = net::connect_error(fd); error != 0) {
      return drop(c, LostReason::kEndOfFile, std::generic_category().message(error));
    }
    if ((events & EPOLLOUT) == 0) return;
    connection.state = Connection::State::kGreeting;
    connection.heard = Clock::now();
    connection.waits_for_room = true;  // so that flush() takes EPOLLOUT off again
    queue(connection, FrameType::kHello,
          Greeting::of(request_, rank(), connection.peer, connection.nonce).encode());
    return;
  }
  if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
    read_from(c);
  } else if ((events & EPOLLOUT) != 0) {
    flush(connection);
  }
}

void SocketLinks::accept_all() {
  while (true) {
    Connection c;
    c.fd = net::accept_from(listener_.get());
    if (!c.fd.valid()) return;
    const int fd = c.fd.get();
    if (watch(fd, EPOLLIN, EPOLL_CTL_ADD)) connections_.emplace(fd, std::move(c));
  }
}

void SocketLinks::read_from(Iterator c) {
  // One buffer a round, so that one busy peer does not starve the others.
  constexpr std::size_t kRead = std::size_t{256} * 1024;
  Connection& connection = c->second;
  const std::size_t old = connection.in.size();
  connection.in.resize(old + kRead);
  const ssize_t n = ::recv(connection.fd.get(), connection.in.data() + old, kRead, 0);
  const int error = errno;
  connection.in.resize(old + static_cast<std::size_t>(std::max<ssize_t>(n, 0)));
  if (n > 0) {
    connection.heard = Clock::now();
    take_frames(c);
  } else if (n == 0) {
    drop(c, LostReason::kEndOfFile, "the connection ended");
  } else if (error != EAGAIN && error != EINTR) {
    drop(c, LostReason::kEndOfFile, std::generic_category().message(error));
  }
}

bool SocketLinks::take_frames(Iterator c) {
  Connection& connection = c->second;
  std::size_t at = 0;
  while (connection.in.size() - at >= link_wire::kHeaderBytes) {
    const auto header = link_wire::decode_header(connection.in.data() + at);
    if (header.wrong != nullptr) {
      drop(c, LostReason::kProtocol, std::string("it sent ") + header.wrong);
      return false;
    }
    if (connection.in.size() - at < link_wire::kHeaderBytes + header.length) break;
    const auto payload = std::span<const std::byte>(connection.in)
                             .subspan(at + link_wire::kHeaderBytes, header.length);
    at += link_wire::kHeaderBytes + header.length;
    if (!take_frame(c, header.type, payload)) return false;
  }
  connection.in.erase(connection.in.begin(),
                      connection.in.begin() + static_cast<std::ptrdiff_t>(at));
  return true;
}

bool SocketLinks::take_frame(Iterator c, FrameType type, std::span<const std::byte> payload) {
  Connection& connection = c->second;
  const bool greeting = type == FrameType::kHello || type == FrameType::kWelcome;
  if (greeting && payload.size() == link_wire::kGreetingBytes) {
    const Greeting got = Greeting::decode(payload);
    if (type == FrameType::kHello && connection.peer == kNobody) return greeted(c, got);
    if (type == FrameType::kWelcome && connection.state == Connection::State::kGreeting &&
        connection.peer != kNobody) {
      return welcomed(c, got);
    }
  }
  if (type == FrameType::kRefusal && connection.state == Connection::State::kGreeting &&
      connection.peer != kNobody) {
    const std::string why(reinterpret_cast<const char*>(payload.data()), payload.size());
    fail(std::make_exception_ptr(
        make_error<InvalidState>("rank " + std::to_string(connection.peer) +
                                     " refused the connection for " + request_.name + ": " + why,
                                 connection.peer)));
    connections_.erase(c);
    return false;
  }
  if (connection.state == Connection::State::kClosing)
    return true;  // what it says is of no account
  if (connection.state == Connection::State::kUp) {
    if (type == FrameType::kHeartbeat && payload.empty()) return true;
    if (type == FrameType::kMessage) {
      deliveries_.message(connection.peer, {payload.begin(), payload.end()});
      return true;
    }
    if (type == FrameType::kGoodbye) {
      drop(c, LostReason::kClosed, "it said goodbye");
      return false;
    }
  }
  drop(c, LostReason::kProtocol, "it sent a frame that has no place here");
  return false;
}

bool SocketLinks::greeted(Iterator c, const Greeting& got) {
  const Greeting want = Greeting::of(request_, got.from, rank(), nonce_);
  if (const char* differs = want.difference(got)) {
    refuse(c, std::string("another ") + differs);
    return false;
  }
  const bool expected = got.from > rank() &&
                        std::binary_search(request_.peers.begin(), request_.peers.end(), got.from);
  if (!expected || up_.contains(got.from)) {
    refuse(c, "rank " + std::to_string(got.from) +
                  (expected ? " is connected already" : " is not expected here"));
    return false;
  }
  c->second.peer = got.from;
  queue(c->second, FrameType::kWelcome,
        Greeting::of(request_, rank(), got.from, got.nonce).encode());
  up(c);
  return true;
}

bool SocketLinks::welcomed(Iterator c, const Greeting& got) {
  const Greeting want = Greeting::of(request_, c->second.peer, rank(), c->second.nonce);
  if (const char* differs = want.difference(got)) {
    drop(c, LostReason::kProtocol, std::string("it answered with another ") + differs);
    return false;
  }
  up(c);
  return true;
}

void SocketLinks::refuse(Iterator c, const std::string& why) {
  last_refusal_ = "refused a connection: " + why;
  const auto text =
      std::as_bytes(std::span(why)).first(std::min(why.size(), link_wire::kMaxSmallPayload));
  queue(c->second, FrameType::kRefusal, text);
  // Stays until the other side has read it and closes, or the silence deadline.
  c->second.state = Connection::State::kClosing;
  c->second.in.clear();
}

void SocketLinks::up(Iterator c) {
  c->second.state = Connection::State::kUp;
  up_.insert(c->second.peer);
  changed_.notify_all();
}

void SocketLinks::queue(Connection& c, FrameType type, std::span<const std::byte> payload) {
  c.out.push_back(link_wire::encode_frame(type, payload));
}

void SocketLinks::flush(Connection& connection) {
  if (connection.state == Connection::State::kConnecting) return;
  bool full = false;
  while (!connection.out.empty() && !full) {
    const auto& frame = connection.out.front();
    const ssize_t n = ::send(connection.fd.get(), frame.data() + connection.out_offset,
                             frame.size() - connection.out_offset, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) {
      full = true;
    } else if (n < 0 && errno != EINTR) {
      // The connection is broken. What the peer said before it went (a goodbye, a refusal) is still
      // to be read; reading finds the end, too.
      connection.out.clear();
      connection.out_offset = 0;
    } else if (n >= 0) {
      connection.sent = Clock::now();
      connection.out_offset += static_cast<std::size_t>(n);
      if (connection.out_offset == frame.size()) {
        connection.out.pop_front();
        connection.out_offset = 0;
      }
    }
  }
  if (full == connection.waits_for_room) return;
  // Changing a watched descriptor needs no memory, so it does not fail.
  watch(connection.fd.get(), full ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
  connection.waits_for_room = full;
}

void SocketLinks::drop(Iterator c, LostReason reason, const std::string& detail) {
  const int peer = c->second.peer;
  const bool was_up = c->second.state == Connection::State::kUp;
  connections_.erase(c);
  if (peer == kNobody) {
    if (connecting_) last_refusal_ = "dropped a connection: " + detail;
    return;
  }
  if (was_up) deliveries_.lost(peer, reason, detail);
  if (!connecting_) return;
  const std::string text =
      "rank " + std::to_string(peer) + " while connecting for " + request_.name + ": " + detail;
  fail(std::make_exception_ptr(make_error<PeerLost>(text, peer)));
}

void SocketLinks::say_goodbye() {
  for (auto& [fd, connection] : connections_) {
    if (connection.state != Connection::State::kUp) continue;
    // While connecting, going away is no orderly end: the peers are to give up too.
    if (!connecting_) queue(connection, FrameType::kGoodbye, {});
    flush(connection);
    ::shutdown(fd, SHUT_WR);
  }
  connections_.clear();
}

}  // namespace socket_links

std::shared_ptr<ControlLinks> connect_socket_links(const std::string& host,
                                                   const LinkOptions& options,
                                                   const ConnectRequest& request, Store& store,
                                                   Deadline deadline, std::stop_token stop) {
  check_request(request);
  if (options.heartbeat_interval.count() <= 0 ||
      options.silence_deadline < 3 * options.heartbeat_interval) {
    throw InvalidArgument("the silence deadline must be at least three heartbeat intervals");
  }
  auto links = std::make_shared<socket_links::SocketLinks>(options, request);
  links->connect(host, store, deadline, std::move(stop));
  return links;
}

}  // namespace meshstage
