#include "tests/comm/worker_process.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <utility>

#include <meshstage/core/error/error.hpp>

namespace meshstage::testing {

WorkerProcess::WorkerProcess(const std::string& program,
                             const std::vector<std::string>& arguments) {
  int pipe[2];
  if (::pipe2(pipe, O_CLOEXEC) != 0) throw_errno("pipe2", "", errno);
  std::vector<char*> argv;
  std::string name = program;
  std::vector<std::string> copies = arguments;
  argv.push_back(name.data());
  for (auto& a : copies) argv.push_back(a.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe[0], 0);
  posix_spawn_file_actions_addclosefrom_np(&actions, 3);
  const int error = ::posix_spawn(&pid_, program.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(pipe[0]);
  input_ = pipe[1];
  if (error != 0) throw_errno("posix_spawn", program, error);
}

WorkerProcess::~WorkerProcess() { kill(); }

void WorkerProcess::tell(const std::string& line) {
  const std::string text = line + "\n";
  if (::write(input_, text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    throw_errno("write", "to a worker", errno);
  }
}

void WorkerProcess::signal(int number) {
  if (pid_ > 0) ::kill(pid_, number);
}

bool WorkerProcess::running() {
  if (pid_ <= 0) return false;
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG) != pid_) return true;
  pid_ = -1;
  return false;
}

bool WorkerProcess::ends_within(std::chrono::milliseconds time) {
  if (pid_ <= 0) return true;
  const int process = static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0));
  if (process < 0) throw_errno("pidfd_open", "of a worker", errno);
  pollfd ended{process, POLLIN, 0};
  int count = -1;
  do {
    count = ::poll(&ended, 1, static_cast<int>(time.count()));
  } while (count < 0 && errno == EINTR);
  ::close(process);
  return count > 0;
}

void WorkerProcess::stop() {
  signal(SIGSTOP);
  wait_until_stopped();
}

void WorkerProcess::wait_until_stopped() {
  siginfo_t info{};
  while (::waitid(P_PID, static_cast<id_t>(pid_), &info, WSTOPPED | WEXITED | WNOWAIT) < 0) {
    if (errno != EINTR) throw_errno("waitid", "for a worker to stop", errno);
  }
}

void WorkerProcess::kill() {
  signal(SIGKILL);
  finish();
}

void WorkerProcess::end_input() {
  if (const int input = std::exchange(input_, -1); input >= 0) ::close(input);
}

int WorkerProcess::finish() {
  end_input();
  if (pid_ <= 0) return 0;
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

std::string own_folder() { return std::filesystem::read_symlink("/proc/self/exe").parent_path(); }

TemporaryFolder::TemporaryFolder() {
  path_ = (std::filesystem::temp_directory_path() / "meshstage-comm-XXXXXX").string();
  if (::mkdtemp(path_.data()) == nullptr) throw_errno("mkdtemp", path_, errno);
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

}  // namespace meshstage::testing
