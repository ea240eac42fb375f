#include "tests/support/forked.hpp"

#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>

namespace meshstage::test {

bool ends_in_forked_child(const std::function<void()>& body) {
  std::array<int, 2> ends{};
  if (::pipe(ends.data()) != 0) return false;
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(ends[0]);
    body();
    // Not exit(): the sanitizers would look for what the child's copies leak, as they should.
    ::_exit(0);
  }
  ::close(ends[1]);
  if (child < 0) {
    ::close(ends[0]);
    return false;
  }
  // The child's end closes when it ends.
  pollfd end{ends[0], POLLIN, 0};
  const bool ended = ::poll(&end, 1, 10'000) == 1;
  ::close(ends[0]);
  if (!ended) ::kill(child, SIGKILL);
  int status = -1;
  ::waitpid(child, &status, 0);
  return ended && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace meshstage::test
