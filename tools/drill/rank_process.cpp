#include "tools/drill/rank_process.hpp"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <utility>

#include <meshstage/core/error/error.hpp>

#include "tools/process/spawn.hpp"

namespace meshstage::tools::drill {
namespace {

constexpr int kReportInChild = 3;

}  // namespace

RankProcess::RankProcess(int rank, const ProcessPlan& plan) : rank_(rank), log_(plan.log) {
  Pipe pipe;
  report_ = std::move(pipe.read);
  Descriptor write_end = std::move(pipe.write);
  if (write_end.get() == kReportInChild) {  // dup2 onto itself would leave it close-on-exec
    write_end = Descriptor(::fcntl(write_end.get(), F_DUPFD_CLOEXEC, 10));
    if (write_end.get() < 0) throw_errno("fcntl", "report pipe", errno);
  }
  ::fcntl(report_.get(), F_SETFL, O_NONBLOCK);

  SpawnSettings settings;
  auto* actions = &settings.actions;
  ::posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_addopen(actions, 1, log_.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  ::posix_spawn_file_actions_adddup2(actions, 1, 2);
  ::posix_spawn_file_actions_adddup2(actions, write_end.get(), kReportInChild);

  std::vector<std::string> words;
  if (plan.host) words = plan.host->words;
  words.push_back(plan.program.string());
  words.insert(words.end(), plan.arguments.begin(), plan.arguments.end());
  words.insert(words.end(), {"--report", std::to_string(kReportInChild)});
  // On a host of its own the process does not see this one.
  if (!plan.host) words.insert(words.end(), {"--parent", std::to_string(::getpid())});
  std::vector<std::string> environment = plan.environment;
  const hosts::EnterPidNamespace there(plan.host ? plan.host->pid_namespace : -1);
  const int error =
      ::posix_spawnp(&process_.pid, words.front().c_str(), actions, &settings.attributes,
                     exec_array(words).data(), exec_array(environment).data());
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
