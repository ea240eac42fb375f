#pragma once
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tools/process/signals.hpp"
#include "tools/run/environment.hpp"
#include "tools/run/hangs.hpp"
#include "tools/run/output.hpp"
#include "tools/run/rank_process.hpp"
#include "tools/run/reports.hpp"
#include "tools/run/supervision.hpp"

namespace meshstage::tools::run {

struct LaunchOptions {
  Launch launch;  ///< `supervisor` and, unless given, `master_port` are filled in.
  SupervisionRules rules;
  HangRules hang_rules;
  std::vector<std::string> command;  ///< The program and its arguments.
  /// From SIGTERM to SIGKILL where the launcher ends ranks.
  std::chrono::milliseconds grace{30'000};
  bool keep_master_port = false;  ///< The ranks of other hosts know it too.
  bool prefix = true;             ///< Begin each line of output with its rank.
};

/// Starts the ranks of one host, passes on what they print and the signals that come, kills ranks
/// that hang (Hangs), starts the dead anew as Supervision decides, and ends with the job. One
/// thread. No process of the job is left when run() has returned or thrown.
class Launcher {
 public:
  Launcher(LaunchOptions options, Signals& signals);
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;
  ~Launcher();

  /// The exit status of the job: 0 where every rank ended with 0, else that of the rank that ended
  /// the job, or 128 + the signal that was passed on. Throws NotFound where the program cannot be
  /// started, IoError.
  int run();

 private:
  using Time = Supervision::Time;
  enum class Phase : std::uint8_t { kRunning, kRestarting, kEnding };
  struct Seat {
    int local_rank = 0;
    std::unique_ptr<RankProcess> process;  ///< Null while none runs.
    std::unique_ptr<LineCutter> out, err;
    Tail tail;
    std::optional<Time> start_at;
    std::string hang;  ///< How it hung, if this program killed it for that.
  };

  void start(Seat& seat);
  void start_all();
  void wait();
  void read_output(Seat& seat);
  void take_reports();
  void pass_on(int signal);
  void kill_hung();
  void reap();
  void ended(Seat& seat, End end);
  void decide(const Decision& decision);
  void end_all(Phase next);
  void signal_all(int signal);
  void keep_time();
  [[nodiscard]] bool any_process() const;
  [[nodiscard]] int rank_of(const Seat& seat) const;
  [[nodiscard]] std::string running_ranks() const;
  [[nodiscard]] std::string processes_text() const;
  [[nodiscard]] std::string process_text(const Seat& seat) const;
  void show_tail(const Seat& seat) const;
  void finish_output(Seat& seat);

  LaunchOptions options_;
  Signals& signals_;
  Reports reports_;
  Supervision supervision_;
  Hangs hangs_;
  std::vector<Seat> seats_;
  Phase phase_ = Phase::kRunning;
  std::optional<Time> restart_all_at_;
  std::optional<Time> kill_at_;
  std::optional<int> passed_on_;  ///< The signal that asked this program to end.
  int exit_status_ = 0;
  int failed_seat_ = -1;
};

}  // namespace meshstage::tools::run
