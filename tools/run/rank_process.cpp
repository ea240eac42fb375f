#include "tools/run/rank_process.hpp"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <fstream>
#include <system_error>
#include <utility>

#include <meshstage/core/error/error.hpp>

namespace meshstage::tools::run {
namespace {

// In the child, between fork and exec: only what is safe there. Returns what exec failed with.
int become(char* const* words, char* const* variables, pid_t parent, int out, int err) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(128 + SIGKILL);  // it died before the line above
  for (const int s : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGCHLD, SIGPIPE}) {
    ::signal(s, SIG_DFL);
  }
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const int null = ::open("/dev/null", O_RDONLY);
  if (null < 0 || ::dup2(null, 0) < 0 || ::dup2(out, 1) < 0 || ::dup2(err, 2) < 0) return errno;
  if (null > 2) ::close(null);
  ::execvpe(words[0], words, variables);
  return errno;
}

void wait_for(pid_t pid) {
  while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace

RankProcess::RankProcess(const std::vector<std::string>& command, const Environment& environment) {
  std::vector<std::string> words = command;
  std::vector<std::string> variables;
  for (const auto& [name, value] : environment) {
    variables.push_back(name);
    variables.back().append("=").append(value);
  }
  const std::vector<char*> word_array = exec_array(words);
  const std::vector<char*> variable_array = exec_array(variables);
  Pipe out, err, failure;
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ < 0) throw_errno("fork", "", errno);
  if (pid_ == 0) {
    const int error =
        become(word_array.data(), variable_array.data(), parent, out.write.get(), err.write.get());
    (void)!::write(failure.write.get(), &error, sizeof error);
    ::_exit(127);
  }
  ::setpgid(pid_, pid_);  // whichever of the two comes first
  failure.write.reset();
  int error = 0;
  ssize_t n = 0;
  while ((n = ::read(failure.read.get(), &error, sizeof error)) < 0 && errno == EINTR) {
  }
  if (n == static_cast<ssize_t>(sizeof error)) {
    wait_for(pid_);
    throw NotFound(command.front() +
                   " cannot be started: " + std::generic_category().message(error));
  }
  out_ = std::move(out.read);
  err_ = std::move(err.read);
  for (const int fd : {out_.get(), err_.get()}) ::fcntl(fd, F_SETFL, O_NONBLOCK);
}

RankProcess::~RankProcess() {
  if (pid_ < 0) return;
  ::kill(-pid_, SIGKILL);
  wait_for(pid_);
}

void RankProcess::signal(int number) const {
  if (pid_ > 0) ::kill(-pid_, number);
}

std::optional<End> RankProcess::try_reap() {
  siginfo_t info{};
  if (pid_ < 0 ||
      ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
      info.si_pid != pid_) {
    return std::nullopt;
  }
  // Its zombie keeps the group's number, so this reaches nobody else.
  ::kill(-pid_, SIGKILL);
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return End::of(status);
}

void adopt_orphans() { ::prctl(PR_SET_CHILD_SUBREAPER, 1); }

void end_orphans() {
  const std::string self = "/proc/self/task/" + std::to_string(::getpid()) + "/children";
  // Each round's dead leave their own children here.
  while (true) {
    std::ifstream in(self);
    bool any = false;
    for (pid_t child = 0; in >> child; any = true) {
      ::kill(child, SIGKILL);
      wait_for(child);
    }
    if (!any) return;
  }
}

}  // namespace meshstage::tools::run
