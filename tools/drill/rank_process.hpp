#pragma once
#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "tools/hosts/namespace_hosts.hpp"
#include "tools/process/process.hpp"

namespace meshstage::tools::drill {

/// The trainer's exit codes: it could not go on, or is no longer one of the job.
inline constexpr int kCouldNotGoOn = 1;
inline constexpr int kFenced = 4;

struct ProcessPlan {
  std::filesystem::path program;
  std::vector<std::string>
      arguments;  ///< Without the program; `--report` and `--parent` are added.
  std::vector<std::string> environment;  ///< "NAME=value"
  std::filesystem::path log;             ///< Standard output and error, appended.
  std::optional<hosts::Entry> host =
      std::nullopt;  ///< Where it runs; nothing: beside this process.
};

/// A rank's process and the lines it reports. Its destructor kills and reaps a process that still
/// runs. The process also ends (by SIGKILL) when this one does; on a host of namespaces it ends
/// with the host.
class RankProcess {
 public:
  /// Throws IoError.
  RankProcess(int rank, const ProcessPlan& plan);
  RankProcess(RankProcess&&) noexcept = default;
  RankProcess& operator=(RankProcess&&) = delete;
  ~RankProcess();

  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] pid_t pid() const { return process_.pid; }
  /// To be polled for reading; -1 once the other end is closed.
  [[nodiscard]] int report() const { return report_.get(); }
  /// Complete lines that are there now; never blocks. An incomplete last line of a process that was
  /// killed is dropped.
  [[nodiscard]] std::vector<std::string> read_lines();
  void send_signal(int signal) const;
  /// Waits until the process has ended or is stopped; a signal that does so was sent.
  void wait_until_down() const;
  /// Reaps the process if it has ended. Never blocks.
  std::optional<End> try_reap();
  [[nodiscard]] const std::optional<End>& end() const { return end_; }
  [[nodiscard]] const std::filesystem::path& log() const { return log_; }

 private:
  struct Child {
    pid_t pid = -1;
    explicit Child(pid_t p = -1) : pid(p) {}
    Child(Child&& other) noexcept : pid(other.pid) { other.pid = -1; }
    Child& operator=(Child&&) = delete;
    ~Child() = default;
  };
  int rank_;
  Child process_;
  Descriptor report_;
  std::string unfinished_;
  std::optional<End> end_;
  std::filesystem::path log_;
};

/// meshstage-trainer, beside the running program. Throws NotFound, listing what was tried.
std::filesystem::path find_trainer();

}  // namespace meshstage::tools::drill
