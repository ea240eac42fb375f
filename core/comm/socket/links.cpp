#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <new>
#include <system_error>
#include <utility>

#include <meshstage/core/comm/greeting_time_impl.hpp>
#include <meshstage/core/comm/socket/links_impl.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/exception_of.hpp>

namespace meshstage {

namespace socket_links {
namespace {

std::span<const std::byte> text_of_refusal(const std::string& why) {
  return std::as_bytes(std::span(why)).first(std::min(why.size(), link_wire::kMaxSmallPayload));
}

}  // namespace

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
    const MutexLock lock(mutex_);
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
    const MutexLock lock(mutex_);
    closing_ = true;
  }
  wake();
  const MutexLock lock(joining_);
  thread_.join();
  const MutexLock state(mutex_);
  connections_.clear();
  listener_.reset();
}

void SocketLinks::run() {
  std::array<epoll_event, 64> events{};
  MutexLock lock(mutex_);
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
      if (connection.stream.has_output()) flush(connection);
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

void SocketLinks::thread_failed(std::exception_ptr failure) {
  std::string what;
  try {
    std::rethrow_exception(failure);
  } catch (const std::bad_alloc&) {
    what = "no memory";  // needs none
  } catch (const std::exception& e) {
    what = e.what();
  } catch (...) {
    what = "unknown";
  }
  {
    const MutexLock lock(mutex_);
    if (connecting_) {
      // Of one attempt: the next one has links of its own.
      fail(exception_of([&] {
        return PeerLost("the links of rank " + std::to_string(rank()) +
                        " to its peers: its thread failed: " + what);
      }));
    }
    for (auto& [fd, connection] : connections_) {
      if (connection.state != Connection::State::kUp) continue;
      try {
        const std::string why = "its thread failed: " + what;
        deliveries_.lost(connection.peer, LostReason::kProtocol, "at this end, " + why);
        // So that the peer does not take the end of the connection for a death of this process.
        queue(connection, FrameType::kRefusal, text_of_refusal(why));
        flush(connection);  // as much as the socket takes
        ::shutdown(fd, SHUT_WR);
      } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch): the next one may have it
      }
    }
    connections_.clear();
    listener_.reset();
  }
  while (deliveries_.deliver_one()) {
  }
}

int SocketLinks::milliseconds_to_next_tick() const {
  Deadline next = Deadline::never();
  for (const auto& [fd, c] : connections_) {
    const bool is_up = c.state == Connection::State::kUp;
    if (is_up) next = next.earlier(Deadline::at(c.sent).plus(options_.heartbeat_interval));
    if (is_up || c.peer == kNobody) next = next.earlier(patience_ends(c));
  }
  if (next.is_never()) return -1;
  constexpr std::chrono::milliseconds kLongest{60'000};
  return static_cast<int>(std::min(next.remaining(), kLongest).count());
}

Deadline SocketLinks::patience_ends(const Connection& c) const {
  const auto silence = Deadline::at(c.heard).plus(options_.silence_deadline);
  if (c.process_ended) return silence.earlier(Deadline::at(c.heard).plus(kLastWords));
  if (c.peer == kNobody) return silence.earlier(Deadline::at(c.heard).plus(detail::kGreetingTime));
  return silence;
}

void SocketLinks::tick() {
  const auto now = Clock::now();
  // If this process itself was stopped, or starved, its peers are not to blame: they get the whole
  // deadline again.
  if (now - last_tick_ > Deadline::length(options_.silence_deadline) / 2) {
    for (auto& [fd, c] : connections_) c.heard = now;
  }
  last_tick_ = now;
  for (auto entry = connections_.begin(); entry != connections_.end();) {
    const auto c = entry++;
    Connection& connection = c->second;
    const bool is_up = connection.state == Connection::State::kUp;
    if (patience_ends(connection).expired()) {
      if (connection.process_ended) {
        drop(c, LostReason::kEndOfFile, "its process has ended");
      } else if (is_up || connection.peer == kNobody) {
        drop(c, LostReason::kSilent,
             is_up ? "nothing received for " + std::to_string(options_.silence_deadline.count()) +
                         " ms"
                   : "it sent no hello");
      }
    } else if (is_up && now - connection.sent >= Deadline::length(options_.heartbeat_interval)) {
      // Behind unsent bytes it would tell the peer nothing that they do not.
      if (!connection.stream.has_output() && deliveries_.alive())
        queue(connection, FrameType::kHeartbeat, {});
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
  if (c == connections_.end()) {
    for (auto& [socket, watched] : connections_) {
      if (watched.process.get() == fd) return process_ended(watched);
    }
    return;  // dropped in this round
  }
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
    c.stream = stream_over(net::accept_from(listener_.get()));
    const int fd = c.stream.fd();
    if (fd < 0) return;
    c.stream.limit_payload(link_wire::kMaxSmallPayload);
    if (watch(fd, EPOLLIN, EPOLL_CTL_ADD)) connections_.emplace(fd, std::move(c));
  }
}

void SocketLinks::read_from(Iterator c) {
  Connection& connection = c->second;
  const ssize_t n = connection.stream.read_some();
  if (n == 0) return drop(c, LostReason::kEndOfFile, "the connection ended");
  if (n < 0) {
    if (errno == EAGAIN || errno == EINTR) return;
    return drop(c, LostReason::kEndOfFile, std::generic_category().message(errno));
  }
  if (connection.state == Connection::State::kClosing) {
    return connection.stream.forget_input();  // what it says is of no account
  }
  // A stranger is given its time once, however it dribbles.
  if (connection.peer != kNobody) connection.heard = Clock::now();
  bool there = true;
  while (there) {
    const auto frame = connection.stream.next();
    if (!frame) return;
    there = frame->wrong == nullptr
                ? take_frame(c, static_cast<FrameType>(frame->type), frame->payload)
                : misunderstood(c, std::string("it sent ") + frame->wrong);
  }
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
    end(c);
    return false;
  }
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
  if (connection.state == Connection::State::kUp && type == FrameType::kRefusal) {
    const std::string why(reinterpret_cast<const char*>(payload.data()), payload.size());
    drop(c, LostReason::kProtocol, "at its end: " + why);
    return false;
  }
  return misunderstood(c, "it sent a frame that has no place here");
}

bool SocketLinks::misunderstood(Iterator c, const std::string& what) {
  if (c->second.state != Connection::State::kUp) {
    drop(c, LostReason::kProtocol, what);
    return false;
  }
  // The peer is told, so that it does not take the end of this connection for a death of ours.
  deliveries_.lost(c->second.peer, LostReason::kProtocol, what);
  const int peer = std::exchange(c->second.peer, kNobody);
  refuse(c, what);
  if (connecting_) {
    fail(std::make_exception_ptr(make_error<PeerLost>(
        "rank " + std::to_string(peer) + " while connecting for " + request_.name + ": " + what,
        peer)));
  }
  return false;
}

void SocketLinks::refuse(Iterator c, const std::string& why) {
  if (connecting_) last_refusal_ = "refused a connection: " + why;
  queue(c->second, FrameType::kRefusal, text_of_refusal(why));
  // Stays until the other side has read it and closes, or the silence deadline.
  c->second.state = Connection::State::kClosing;
  c->second.stream.forget_input();
}

void SocketLinks::up(Iterator c, const ProcessAddress& process) {
  Connection& connection = c->second;
  connection.state = Connection::State::kUp;
  connection.stream.lift_limit();
  connection.heard = Clock::now();
  const ProcessWatch watched = watch_process(process);
  connection.process = Descriptor(watched.descriptor);
  const bool watching =
      connection.process.valid() && watch(connection.process.get(), EPOLLIN, EPOLL_CTL_ADD);
  if (!watching) connection.process.reset();
  if (watched.ended) connection.process_ended = true;
  up_.insert(connection.peer);
  changed_.notify_all();
}

void SocketLinks::process_ended(Connection& connection) {
  connection.process_ended = true;
  connection.heard = Clock::now();
  unwatch(connection.process);
}

void SocketLinks::queue(Connection& c, FrameType type, std::span<const std::byte> payload) {
  c.stream.queue(static_cast<std::uint16_t>(type), payload);
}

void SocketLinks::flush(Connection& connection) {
  if (connection.state == Connection::State::kConnecting) return;
  // If the connection is broken, what the peer said before it went (a goodbye, a refusal) is still
  // to be read; reading finds the end, too.
  const auto flushed = connection.stream.flush();
  if (flushed.bytes > 0) connection.sent = Clock::now();
  if (flushed.full == connection.waits_for_room) return;
  // Changing a watched descriptor needs no memory, so it does not fail.
  watch(connection.stream.fd(), flushed.full ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
  connection.waits_for_room = flushed.full;
}

void SocketLinks::unwatch(Descriptor& descriptor) noexcept {
  if (!descriptor.valid()) return;
  // By name: a child that was forked meanwhile holds it too, and epoll forgets a file only with its
  // last descriptor.
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, descriptor.get(), nullptr);
  descriptor.reset();
}

void SocketLinks::end(Iterator c) {
  // For such a child's sake: the peer is to see the end now, not when the child ends.
  ::shutdown(c->first, SHUT_RDWR);
  unwatch(c->second.process);
  unwatch(c->second.stream.descriptor());
  connections_.erase(c);
}

void SocketLinks::drop(Iterator c, LostReason reason, const std::string& detail) {
  const int peer = c->second.peer;
  const bool was_up = c->second.state == Connection::State::kUp;
  end(c);
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
      options.silence_deadline / 3 < options.heartbeat_interval) {
    throw InvalidArgument("the silence deadline must be at least three heartbeat intervals");
  }
  const std::shared_ptr<socket_links::SocketLinks> links(
      new socket_links::SocketLinks(options, request), DeleteHere{});
  links->connect(host, store, deadline, std::move(stop));
  return links;
}

}  // namespace meshstage
