#include "tools/hosts/script.hpp"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <utility>

#include <fmt/format.h>

#include <meshstage/core/error/error.hpp>

#include "tools/process/spawn.hpp"

namespace meshstage::tools::hosts {
namespace {

constexpr const char* kReady = "ready\n";

}  // namespace

Script::Script(std::vector<std::string> words) {
  Pipe in, out;
  SpawnSettings settings;
  auto* actions = &settings.actions;
  ::posix_spawn_file_actions_adddup2(actions, in.read.get(), 0);
  ::posix_spawn_file_actions_adddup2(actions, out.write.get(), 1);
  ::posix_spawn_file_actions_adddup2(actions, out.write.get(), 2);
  words.insert(words.begin(), {"/usr/bin/env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"});
  const int error = ::posix_spawn(&pid_, words.front().c_str(), actions, &settings.attributes,
                                  exec_array(words).data(), environ);
  if (error != 0) {
    pid_ = -1;
    throw_errno("posix_spawn", words.front(), error);
  }
  input_ = std::move(in.write);
  output_ = std::move(out.read);
}

Script::~Script() { end(); }

bool Script::is_ready(std::chrono::milliseconds within) {
  const std::int64_t until = now_ns() + std::chrono::nanoseconds(within).count();
  std::array<char, 4096> buffer{};
  while (!text_.ends_with(kReady)) {
    pollfd polled{output_.get(), POLLIN, 0};
    const auto left = static_cast<int>(std::max<std::int64_t>((until - now_ns()) / 1'000'000, 0));
    const int found = ::poll(&polled, 1, left);
    if (found < 0 && errno == EINTR) continue;
    if (found < 0) return false;
    if (found == 0) {
      text_ += fmt::format("no answer within {} ms", within.count());
      kill();  // it need not look at its input, so end() could wait for ever
      return false;
    }
    const ssize_t n = ::read(output_.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    text_.append(buffer.data(), static_cast<std::size_t>(n));
  }
  return true;
}

std::string Script::said() const {
  std::string line = text_;
  while (line.ends_with('\n')) line.pop_back();
  std::replace(line.begin(), line.end(), '\n', ' ');
  return line;
}

bool Script::reap() {
  if (pid_ < 0) return false;
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool Script::end() {
  input_.reset();
  return reap();
}

void Script::kill() {
  if (pid_ > 0) ::kill(-pid_, SIGKILL);
  (void)reap();
}

}  // namespace meshstage::tools::hosts
