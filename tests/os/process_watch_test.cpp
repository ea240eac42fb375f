#include <meshstage/core/os/process_watch.hpp>

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstddef>
#include <cstring>

#include "tests/support/catch.hpp"

using meshstage::own_process_address;
using meshstage::ProcessAddress;
using meshstage::watch_process;

namespace {

/// A forked child that says where it is to be found, and waits.
struct Child {
  Child() {
    std::array<int, 2> pipe{};
    REQUIRE(::pipe(pipe.data()) == 0);
    pid = ::fork();
    if (pid == 0) {
      const ProcessAddress own = own_process_address();
      (void)!::write(pipe[1], &own, sizeof(own));
      while (true) ::pause();
    }
    std::array<std::byte, sizeof(ProcessAddress)> bytes{};
    REQUIRE(::read(pipe[0], bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
    std::memcpy(&address, bytes.data(), bytes.size());
    ::close(pipe[0]);
    ::close(pipe[1]);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
  pid_t pid = 0;
  ProcessAddress address;
};

bool ended(int descriptor, int milliseconds) {
  pollfd wanted{descriptor, POLLIN, 0};
  return ::poll(&wanted, 1, milliseconds) == 1;
}

}  // namespace

TEST_CASE("a watched process is seen to end, before anybody has reaped it") {
  const Child child;
  CHECK(child.address.pid == child.pid);
  const auto watch = watch_process(child.address);
  REQUIRE(watch.descriptor >= 0);
  CHECK_FALSE(ended(watch.descriptor, 0));
  ::kill(child.pid, SIGKILL);
  CHECK(ended(watch.descriptor, 20'000));
  ::close(watch.descriptor);
  const auto late = watch_process(child.address);
  CHECK(late.descriptor == -1);
  CHECK(late.ended);
}

TEST_CASE("what is not that process on this host is not watched, and not taken for dead") {
  const Child child;
  std::array<ProcessAddress, 6> others;
  others.fill(child.address);
  others[0].boot ^= 1;
  others[1].pid_namespace ^= 1;
  others[2].start_time += 1;  // its number was reused
  others[3].start_time = 0;
  others[4] = own_process_address();
  others[5] = {};
  for (std::size_t i = 0; i < others.size(); ++i) {
    INFO(i);
    const auto watch = watch_process(others[i]);
    CHECK(watch.descriptor == -1);
    CHECK_FALSE(watch.ended);
  }
}
