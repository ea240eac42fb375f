#pragma once
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "tools/drill/arguments.hpp"
#include "tools/drill/death.hpp"
#include "tools/drill/display.hpp"
#include "tools/drill/rank_process.hpp"
#include "tools/drill/seat.hpp"
#include "tools/process/signals.hpp"

namespace meshstage::tools::drill {

/// The run went otherwise than it must: a rank ended by itself, hung, or was not fenced.
class JobFailed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// SIGINT, SIGTERM or SIGHUP came.
struct Interrupted {
  int signal = 0;
};

struct JobOptions {
  std::string name;
  Arguments arguments;
  std::uint64_t every = 0;          ///< 0: nothing is staged.
  std::vector<Fault> faults;        ///< None: an uninterrupted run.
  std::filesystem::path directory;  ///< Exists; everything but the vault goes below it.
  std::filesystem::path vault;      ///< Exists.
  std::filesystem::path trainer;
};

struct JobResult {
  std::vector<Death> deaths;
  std::vector<Fault> never_happened;
  std::vector<std::string> grown;  ///< What a process had more of after a death, or left behind.
  std::vector<double> stage_ms, replicate_ms, step_ms;
  double first_loss = 0;
  double final_loss = 0;
  std::uint64_t state_bytes = 0;     ///< Of one rank.
  std::uint64_t vault_bytes = 0;     ///< Of all ranks, at its largest.
  std::uint64_t sent_bytes = 0;      ///< Of images, to their holders, by all ranks.
  std::uint64_t borrowed_bytes = 0;  ///< What their replicas borrowed instead.
  double seconds = 0;
};

/// Starts the ranks of one job, does to them what was asked, replaces the dead, and waits for the
/// end. One thread; no process of it is left when run() has returned or thrown.
class Job {
 public:
  Job(JobOptions options, Signals& signals, Display& display);
  ~Job();
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  /// Throws JobFailed, Interrupted, IoError.
  JobResult run();
  /// The final state of a rank, as the trainer saved it.
  static std::filesystem::path state_file(const std::filesystem::path& directory, int rank);
  /// The last lines of every rank's log, for a failure.
  [[nodiscard]] std::string tails() const;

 private:
  void start(Seat& seat);
  [[nodiscard]] ProcessPlan plan(Seat& seat);
  void pump(int wait_ms);
  void handle(Seat& seat, const Event& event);
  void take_recovered(Seat& seat, const Event& event);
  void check_resources(std::uint64_t generation);
  void check_vaults();
  struct Lost {
    int reporter;
    int named;
    std::int64_t at;
    std::string error, why;
  };
  void take_lost(const Lost& lost);
  void fault_begins(Seat& seat, const Event& event);
  void all_die(Seat& first, Death death);
  void reap();
  void ended(Seat& seat, const End& end);
  void replace_the_dead();
  void settle();
  void finish_death(Death& death);
  void mind_zombies();
  void wipe_vault(std::optional<int> rank) const;
  void check_time() const;
  void show();
  [[nodiscard]] bool done() const;
  [[nodiscard]] std::uint64_t job_step() const;
  [[nodiscard]] std::string what_all_do() const;

  JobOptions options_;
  Signals& signals_;
  Display& display_;
  JobResult result_;
  std::vector<std::unique_ptr<Seat>> seats_;
  std::list<Zombie> zombies_;
  std::vector<Lost> unexplained_;
  Progress progress_;
  std::ofstream trace_;
  std::int64_t started_ = 0;
  std::uint64_t checked_generation_ = 0;
};

}  // namespace meshstage::tools::drill
