#pragma once
// What the stores that have a server share: a call asks, and asks again while no server answers.
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/socket/net_impl.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::server_call {

/// The connection is of no use any more; another may be. Never leaves a store.
struct Broken {
  std::string why;
};
/// The deadline of a wait. Never leaves a store.
struct Late {};

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
  /// -1 if nobody can request one.
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

/// Connects, within the deadline. Throws Broken, and Cancelled once `stop` is readable.
inline net::Descriptor connect(const std::string& host, const std::string& port, Deadline deadline,
                               int stop) {
  net::Connected connected;
  try {
    connected = net::connect_to(host, port, deadline, stop);
  } catch (const IoError& e) {
    throw Broken{e.what()};
  }
  if (connected.stopped) throw_given_up();
  if (!connected.fd.valid()) throw_broken(connected.error);
  net::set_keep_alive(connected.fd.get());
  return std::move(connected.fd);
}

/// How long a call goes on without an answer.
class Patience {
 public:
  explicit Patience(std::chrono::milliseconds length) : length_(length) {}
  /// When it ends.
  [[nodiscard]] Deadline end() const { return end_.value_or(Deadline::after(length_)); }
  /// Somebody answers: it begins anew with the next failure.
  void answered() noexcept { end_.reset(); }
  void failed() {
    if (!end_) end_ = Deadline::after(length_);
  }
  [[nodiscard]] std::chrono::milliseconds length() const noexcept { return length_; }

 private:
  std::chrono::milliseconds length_;
  std::optional<Deadline> end_;
};

/// Returns what `attempt(patience)` does; calls it again if it throws Broken. Throws Late at the
/// deadline, IoError ("no store answers at <address>: <why>; <hint>") when the patience has ended,
/// Cancelled at a stop.
template <class F>
auto until_answered(const std::string& address, const std::string& hint,
                    std::chrono::milliseconds length, Deadline deadline,
                    const std::stop_token& stop, F&& attempt) {
  Patience patience(length);
  while (true) {
    std::string why;
    try {
      return attempt(patience);
    } catch (const Broken& e) {
      why = e.why;
    }
    patience.failed();
    if (deadline.expired()) throw Late{};
    if (patience.end().expired()) {
      throw IoError("no store answers at " + address + ": " + why + "; " + hint);
    }
    // A server that starts has no way to say so: a client knocks again after a while.
    constexpr std::chrono::milliseconds kKnock{50};
    std::mutex mutex;
    std::condition_variable_any never;
    std::unique_lock lock(mutex);
    const Deadline next = Deadline::after(kKnock).earlier(patience.end()).earlier(deadline);
    never.wait_until(lock, stop, next.time(), [] { return false; });
    if (stop.stop_requested()) throw_given_up();
  }
}

}  // namespace meshstage::server_call
