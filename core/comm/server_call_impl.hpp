#pragma once
// The parts that all stores with a server use: a call asks the server, and asks again while no
// server answers.
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/comm/socket/net_impl.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::server_call {

/// The connection is of no use any more, but another one may be. Stores catch it themselves.
struct Broken {
  std::string why;
};
/// The deadline of a wait passed; `why` says why no server answered, if that is the reason. Stores
/// catch it themselves.
struct Late {
  std::string why = {};
};

[[noreturn]] inline void throw_broken(int error) {
  throw Broken{std::generic_category().message(error)};
}
[[noreturn]] inline void throw_given_up() { throw Cancelled("waiting in the store was given up"); }

/// Readable once a stop is requested.
class StopSignal {
 public:
  explicit StopSignal(const std::stop_token& stop)
      : event_(stop.stop_possible() ? ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1),
        callback_(stop, Raise{event_.get()}) {
    if (stop.stop_possible() && !event_.valid()) throw_errno("eventfd", "", errno);
  }
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;
  /// -1 if a stop can never be requested.
  [[nodiscard]] int descriptor() const noexcept { return event_.get(); }

 private:
  struct Raise {
    int fd;
    void operator()() const noexcept {
      const std::uint64_t one = 1;
      (void)!::write(fd, &one, sizeof(one));
    }
  };
  net::Descriptor event_;
  std::stop_callback<Raise> callback_;  // last: it ends before its descriptor
};

/// Connects, within the deadline. Throws Broken, IoError where no other attempt can do better, and
/// Cancelled once `stop` is readable.
/// A name without an address is Broken, too: containers that start together get their names when
/// each starts, so the name may have an address at the next attempt. open_store() has refused what
/// can never be a host. The system looks names up and knows no deadline of ours: a name server that
/// does not answer costs the time in resolv.conf.
inline net::Descriptor connect(const std::string& host, const std::string& port, Deadline deadline,
                               int stop) {
  net::Connected connected;
  try {
    connected = net::connect_to(host, port, deadline, stop);
  } catch (const IoError& e) {
    throw Broken{e.what()};
  }
  if (connected.stopped) throw_given_up();
  if (connected.error == EAFNOSUPPORT) {  // nor will it
    throw IoError("this host has no network of the address family of " + host);
  }
  if (!connected.fd.valid()) throw_broken(connected.error);
  net::set_keep_alive(connected.fd.get());
  return std::move(connected.fd);
}

/// How long a call goes on without an answer, and how often it has tried.
class Patience {
 public:
  using Milliseconds = std::chrono::milliseconds;
  static constexpr Milliseconds kEndless = Milliseconds::max();
  explicit Patience(Milliseconds length) : length_(length) {}
  /// The time at which the patience ends.
  [[nodiscard]] Deadline end() const { return end_.value_or(Deadline::after(length_)); }
  void begins() {
    if (!since_) since_ = Deadline::Clock::now();
  }
  /// To be called when a server answers: the patience begins anew with the next failure.
  void answered() noexcept { *this = Patience(length_); }
  void failed() {
    begins();
    if (!end_) end_ = Deadline::after(length_);
    ++failures_;
  }
  [[nodiscard]] Milliseconds length() const noexcept { return length_; }
  /// "3 attempts in 40 ms".
  [[nodiscard]] std::string tried() const {
    const auto spent = Deadline::Clock::now() - since_.value_or(Deadline::Clock::now());
    return std::to_string(failures_) + (failures_ == 1 ? " attempt in " : " attempts in ") +
           std::to_string(std::chrono::duration_cast<Milliseconds>(spent).count()) + " ms";
  }
  /// The pause before the next attempt: 10 ms, then twice as long each time, up to 200 ms.
  [[nodiscard]] Milliseconds pause() const {
    constexpr int kDoublings = 5;
    return std::min(Milliseconds{10} * (1 << std::min(failures_ - 1, kDoublings)),
                    Milliseconds{200});
  }

 private:
  Milliseconds length_;
  std::optional<Deadline> end_;
  std::optional<Deadline::Clock::time_point> since_;  // the first attempt of those that failed
  int failures_ = 0;
};

/// The server of a call, for example "tcp://127.0.0.1:29400", and what a person should do if it
/// does not answer.
struct Server {
  std::string address;
  std::string hint;
};

/// Returns the result of `attempt(patience)`, which it calls again after each Broken. Throws Late
/// at the deadline, IoError when the patience has ended, Cancelled at a stop. Late, IoError and
/// (after each failed attempt) `unanswered` get the text "no store answers at <address>: <why> (3
/// attempts in 40 ms); <hint>".
template <class F>
auto until_answered(const Server& server, std::chrono::milliseconds length, Deadline deadline,
                    const std::stop_token& stop, F&& attempt,
                    const Store::Unanswered& unanswered = {}) {
  Patience patience(length);
  while (true) {
    std::string why;
    patience.begins();
    try {
      return attempt(patience);
    } catch (const Broken& e) {
      why = "no store answers at " + server.address + ": " + e.why;
    }
    patience.failed();
    why += " (" + patience.tried() + "); " + server.hint;
    if (deadline.expired()) throw Late{why};
    if (patience.end().expired()) throw IoError(why);
    if (unanswered) unanswered(why);
    // A server that starts has no way to say so: a client knocks again after a while.
    Mutex mutex;
    CondVar never;
    MutexLock lock(mutex);
    const Deadline next =
        Deadline::after(patience.pause()).earlier(patience.end()).earlier(deadline);
    (void)never.wait_until(lock, stop, next, [] { return false; });
    if (stop.stop_requested()) throw_given_up();
  }
}

/// Runs a call that is no wait, and turns its Late into Timeout.
template <class F>
auto until_deadline(const Server& server, F&& call) {
  try {
    return call();
  } catch (const Late& e) {
    throw Timeout("the store at " + server.address + " did not answer by the deadline" +
                  (e.why.empty() ? "" : ": " + e.why));
  }
}

/// The time at which one attempt to connect ends, so that another can follow. Without it a firewall
/// that swallows packets, or a server that accepts but is not up, would hold the first attempt
/// until the deadline.
inline Deadline attempt_end(Deadline deadline) {
  return deadline.earlier(Deadline::after(std::chrono::seconds(3)));
}

/// Store::wait_reachable(): `attempt()` connects until attempt_end(), and throws Broken if that
/// failed.
template <class F>
void wait_until_answered(const Server& server, Deadline deadline, const std::stop_token& stop,
                         const Store::Unanswered& unanswered, F&& attempt) {
  try {
    until_answered(
        server, Patience::kEndless, deadline, stop, [&](const Patience&) { attempt(); },
        unanswered);
  } catch (const Late& e) {
    throw Timeout(e.why);
  }
}

}  // namespace meshstage::server_call
