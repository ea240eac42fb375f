#include "tools/drill/rank_process.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>

#include <meshstage/core/error/error.hpp>

namespace meshstage::tools::drill {
namespace {

constexpr int kReportInChild = 3;

// What posix_spawn is told, freed at the end.
struct SpawnSettings {
  posix_spawn_file_actions_t actions{};
  posix_spawnattr_t attributes{};
  SpawnSettings() {
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawnattr_init(&attributes);
    // Signals as a shell would start it, whatever this process blocks; a process group of its own,
    // so that Ctrl-C reaches this process alone, which then ends the ranks in order.
    sigset_t none;
    sigset_t usual;
    ::sigemptyset(&none);
    ::sigemptyset(&usual);
    for (const int s : {SIGINT, SIGTERM, SIGHUP, SIGCHLD, SIGPIPE}) ::sigaddset(&usual, s);
    ::posix_spawnattr_setsigmask(&attributes, &none);
    ::posix_spawnattr_setsigdefault(&attributes, &usual);
    ::posix_spawnattr_setpgroup(&attributes, 0);
    ::posix_spawnattr_setflags(
        &attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  }
  SpawnSettings(const SpawnSettings&) = delete;
  SpawnSettings& operator=(const SpawnSettings&) = delete;
  ~SpawnSettings() {
    ::posix_spawn_file_actions_destroy(&actions);
    ::posix_spawnattr_destroy(&attributes);
  }
};

}  // namespace

RankProcess::RankProcess(int rank, const ProcessPlan& plan) : rank_(rank), log_(plan.log) {
  std::array<int, 2> pipe{};
  if (::pipe2(pipe.data(), O_CLOEXEC) != 0) throw_errno("pipe2", "", errno);
  report_ = Descriptor(pipe[0]);
  Descriptor write_end(pipe[1]);
  if (pipe[1] == kReportInChild) {  // dup2 onto itself would leave it close-on-exec
    write_end = Descriptor(::fcntl(pipe[1], F_DUPFD_CLOEXEC, 10));
    if (write_end.get() < 0) throw_errno("fcntl", "report pipe", errno);
  }
  ::fcntl(report_.get(), F_SETFL, O_NONBLOCK);

  SpawnSettings settings;
  auto* actions = &settings.actions;
  ::posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_addopen(actions, 1, log_.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  ::posix_spawn_file_actions_adddup2(actions, 1, 2);
  ::posix_spawn_file_actions_adddup2(actions, write_end.get(), kReportInChild);

  std::vector<std::string> arguments{plan.program.string()};
  arguments.insert(arguments.end(), plan.arguments.begin(), plan.arguments.end());
  for (const auto& more : {std::string("--report"), std::to_string(kReportInChild),
                           std::string("--parent"), std::to_string(::getpid())}) {
    arguments.push_back(more);
  }
  std::vector<std::string> environment = plan.environment;
  const int error =
      ::posix_spawn(&process_.pid, plan.program.c_str(), actions, &settings.attributes,
                    exec_array(arguments).data(), exec_array(environment).data());
  if (error != 0) {
    process_.pid = -1;
    throw_errno("posix_spawn", plan.program.string(), error);
  }
}

RankProcess::~RankProcess() {
  if (process_.pid < 0 || end_) return;
  ::kill(process_.pid, SIGKILL);
  while (::waitpid(process_.pid, nullptr, 0) < 0 && errno == EINTR) {
  }
}

std::vector<std::string> RankProcess::read_lines() {
  std::vector<std::string> lines;
  std::array<char, 65536> buffer{};
  while (report_.get() >= 0) {
    const ssize_t n = ::read(report_.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) break;
    if (n <= 0) {
      report_.reset();
      break;
    }
    unfinished_.append(buffer.data(), static_cast<std::size_t>(n));
  }
  std::size_t begin = 0;
  for (auto end = unfinished_.find('\n'); end != std::string::npos;
       end = unfinished_.find('\n', begin)) {
    lines.push_back(unfinished_.substr(begin, end - begin));
    begin = end + 1;
  }
  unfinished_.erase(0, begin);
  return lines;
}

void RankProcess::send_signal(int signal) const {
  if (process_.pid > 0 && !end_) ::kill(process_.pid, signal);
}

void RankProcess::wait_until_down() const {
  if (process_.pid < 0 || end_) return;
  siginfo_t info{};
  while (::waitid(P_PID, static_cast<id_t>(process_.pid), &info, WSTOPPED | WEXITED | WNOWAIT) !=
             0 &&
         errno == EINTR) {
  }
}

std::optional<End> RankProcess::try_reap() {
  int status = 0;
  if (end_ || process_.pid < 0 || ::waitpid(process_.pid, &status, WNOHANG) != process_.pid) {
    return std::nullopt;
  }
  end_ = End::of(status);
  return end_;
}

std::filesystem::path find_trainer() {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  const auto trainer = self.parent_path() / "meshstage-trainer";
  if (::access(trainer.c_str(), X_OK) != 0) {
    throw NotFound("the drill needs meshstage-trainer beside this program; tried " +
                   trainer.string() + ": build the target meshstage-trainer, or install it");
  }
  return trainer;
}

}  // namespace meshstage::tools::drill
