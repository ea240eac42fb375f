#pragma once
#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "tools/process/process.hpp"
#include "tools/run/environment.hpp"

namespace meshstage::tools::run {

/// A rank's process, leader of a process group of its own, with its standard output and error as
/// pipes. What it started goes with it: the group is killed when its leader has ended, and by the
/// destructor. The kernel kills the leader when this process dies.
class RankProcess {
 public:
  /// Throws NotFound where the program cannot be started, IoError.
  RankProcess(const std::vector<std::string>& command, const Environment& environment);
  RankProcess(const RankProcess&) = delete;
  RankProcess& operator=(const RankProcess&) = delete;
  ~RankProcess();

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// Descriptors to read from, non-blocking.
  [[nodiscard]] int out() const { return out_.get(); }
  [[nodiscard]] int err() const { return err_.get(); }
  void close_out() { out_.reset(); }
  void close_err() { err_.reset(); }
  /// To the whole group.
  void signal(int number) const;
  /// How its leader ended, if it has. Never blocks. What was left of the group is killed first.
  std::optional<End> try_reap();

 private:
  pid_t pid_ = -1;  ///< -1 once it was reaped.
  Descriptor out_, err_;
};

/// Orphans of the ranks become children of this process, so that it can end them.
void adopt_orphans();
/// Kills and reaps every child that this process still has, and theirs.
void end_orphans();

}  // namespace meshstage::tools::run
