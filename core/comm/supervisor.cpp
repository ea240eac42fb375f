#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <utility>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/thread.hpp>
#include <meshstage/core/comm/job_entries_impl.hpp>
#include <meshstage/core/comm/socket/net_impl.hpp>
#include <meshstage/core/comm/supervisor.hpp>

namespace meshstage {

struct SupervisorReports::State {
  /// Of a full socket, for the report that must not be lost.
  static constexpr timeval kPatience{.tv_sec = 0, .tv_usec = 200'000};

  State(std::string socket, int number, std::chrono::milliseconds every)
      : path(std::move(socket)),
        rank(number),
        token(detail::random_number()),
        interval(every),
        fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)),
        thread("ms-report", [this](const std::stop_token& stop) { run(stop); }) {}

  void become(const char* new_word) {
    const MutexLock lock(mutex);
    word = new_word;
    send(word, token, false);
  }

  void leave() {
    const MutexLock lock(mutex);
    if (std::exchange(word, nullptr) != nullptr) send("left", token, true);
  }

  /// Allocates nothing, for its callers may not throw.
  void send(const char* what, std::uint64_t number, bool waits) const {
    sockaddr_un address{};
    if (fd.get() < 0 || path.size() >= sizeof address.sun_path) return;
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    std::array<char, 64> text{};
    const int length = std::snprintf(text.data(), text.size(), "%s %d %llu", what, rank,
                                     static_cast<unsigned long long>(number));
    if (waits) (void)::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &kPatience, sizeof kPatience);
    (void)::sendto(fd.get(), text.data(), static_cast<std::size_t>(length),
                   MSG_NOSIGNAL | (waits ? 0 : MSG_DONTWAIT),
                   reinterpret_cast<const sockaddr*>(&address), sizeof address);
  }

  void run(const std::stop_token& stop) {
    MutexLock lock(mutex);
    while (true) {
      (void)changed.wait_until(lock, stop, Deadline::after(interval), [] { return false; });
      if (stop.stop_requested()) return;
      if (word != nullptr) send(word, token, false);
    }
  }

  const std::string path;
  const int rank;
  const std::uint64_t token;
  const std::chrono::milliseconds interval;
  const net::Descriptor fd;  // kept: a process that has no descriptor left must still report
  Mutex mutex;
  CondVar changed;
  /// Of the report that is repeated. Null: none is.
  const char* word MESHSTAGE_GUARDED_BY(mutex) = nullptr;
  StoppableThread thread;  // last: it ends before what it uses
};

SupervisorReports::SupervisorReports(std::string path, int rank, std::chrono::milliseconds interval)
    : state_(path.empty() ? nullptr : new State(std::move(path), rank, interval)) {}

SupervisorReports::~SupervisorReports() {
  if (origin_.is_here()) left();
}

void SupervisorReports::forming() noexcept {
  if (state_) state_->become("forming");
}

void SupervisorReports::joined(std::uint64_t generation) noexcept {
  if (!state_) return;
  state_->send("joined", generation, false);
  state_->become("alive");
}

void SupervisorReports::alive() noexcept {
  if (state_) state_->become("alive");
}

void SupervisorReports::left() noexcept {
  if (state_) state_->leave();
}

}  // namespace meshstage
