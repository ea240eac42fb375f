// How links over sockets come up: addresses by way of the Store, then a hello and a welcome. What
// they do from then on is in links.cpp.
#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <random>
#include <utility>

#include <meshstage/core/comm/socket/links_impl.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/ranks_text.hpp>

namespace meshstage::socket_links {

void SocketLinks::connect(const std::string& host, Store& store, Deadline deadline,
                          std::stop_token stop) {
  if (!request_.peers.empty() && request_.peers.back() > rank()) {
    std::random_device random;
    nonce_ = std::uint64_t{random()} << 32 | random();
    std::string address;
    {
      const MutexLock lock(mutex_);
      listener_ = net::listen_on(host);
      if (!watch(listener_.get(), EPOLLIN, EPOLL_CTL_ADD)) throw_errno("epoll_ctl", "", errno);
      address = net::address_of(listener_.get());
    }
    store.set(key(rank()), address + " " + std::to_string(nonce_), deadline);
  }
  {
    const MutexLock lock(joining_);
    thread_ = Thread(
        "ms-links", [this] { run(); },
        [this](std::exception_ptr failure) { thread_failed(std::move(failure)); });
  }
  // A peer that goes meanwhile ends the wait for the others' addresses too.
  const std::stop_callback chain(stop, [this] { failed_.request_stop(); });
  for (const int peer : request_.peers) {
    if (peer > rank()) continue;
    std::string address;
    try {
      address = store.wait_for(key(peer), deadline, failed_.get_token());
    } catch (const Cancelled&) {
      const MutexLock lock(mutex_);
      if (failure_) std::rethrow_exception(failure_);
      throw;
    } catch (const Timeout&) {
      throw make_error<Timeout>("rank " + std::to_string(peer) + " did not come for " +
                                    request_.name + " by the deadline",
                                peer);
    }
    const std::size_t nonce_at = address.find_last_of(' ') + 1;
    const MutexLock lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
    try {
      Connection c;
      c.nonce = std::stoull(address.substr(nonce_at));
      c.stream = stream_over(net::begin_connect(address));
      c.state = Connection::State::kConnecting;
      c.peer = peer;
      const int fd = c.stream.fd();
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
  MutexLock lock(mutex_);
  (void)changed_.wait_until(lock, stop, deadline, [this]() MESHSTAGE_REQUIRES(mutex_) {
    return failure_ || up_.size() == request_.peers.size();
  });
  if (failure_) std::rethrow_exception(failure_);
  std::vector<int> missing;
  for (const int peer : request_.peers) {
    if (!up_.contains(peer)) missing.push_back(peer);
  }
  if (!missing.empty()) {
    if (stop.stop_requested()) throw Cancelled("connecting was given up");
    throw make_error<Timeout>("did not connect for " + request_.name + " by the deadline: rank " +
                                  ranks_text(missing) +
                                  (last_refusal_.empty() ? "" : " (" + last_refusal_ + ")"),
                              missing.front());
  }
  connecting_ = false;
  unwatch(listener_);
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
  up(c, got.process);
  return true;
}

bool SocketLinks::welcomed(Iterator c, const Greeting& got) {
  const Greeting want = Greeting::of(request_, c->second.peer, rank(), c->second.nonce);
  if (const char* differs = want.difference(got)) {
    drop(c, LostReason::kProtocol, std::string("it answered with another ") + differs);
    return false;
  }
  up(c, got.process);
  return true;
}

}  // namespace meshstage::socket_links
