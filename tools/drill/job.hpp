#pragma once
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tools/drill/arguments.hpp"
#include "tools/drill/death.hpp"
#include "tools/drill/display.hpp"
#include "tools/drill/hosts.hpp"
#include "tools/drill/rank_process.hpp"
#include "tools/drill/seat.hpp"
#include "tools/process/signals.hpp"

namespace meshstage::tools::drill {

/// Nanoseconds.
inline constexpr std::int64_t kMillisecond = 1'000'000;
inline constexpr std::int64_t kSecond = 1'000 * kMillisecond;

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
  std::uint64_t every = 0;                 ///< 0: nothing is staged.
  std::vector<Fault> faults;               ///< None: an uninterrupted run.
  std::filesystem::path directory;         ///< Exists; everything but the vault goes below it.
  hosts::NamespaceHosts* hosts = nullptr;  ///< Where the ranks run; null: beside this process.
  /// Directories that exist: one for each host, or one for all. Without `hosts`, which have
  /// /dev/shm.
  std::vector<std::filesystem::path> vaults;
  std::vector<std::filesystem::path> disks;  ///< The same, for files.
  /// Where each host of `hosts` sees its own of several disks.
  std::filesystem::path disk_on_host;
  std::filesystem::path trainer;
  std::uint64_t until = 0;     ///< The step after which it ends; 0: the last one.
  std::filesystem::path load;  ///< Begins with the final states of a job, there; empty: anew.
  int load_ranks = 0;          ///< Of that job.
};

/// A number of ranks that a job had, ...
struct World {
  int ranks = 0;
  std::uint64_t from_step = 0;  ///< ... and the step from which these trained on.
};

/// A second start of the job that was refused.
struct SecondStart {
  std::uint64_t step = 0;  ///< That the job was about to train.
  bool at_once = false;    ///< It began at the same moment as the start that has the job.
  int ranks = 0;
  double refused_ms = 0;  ///< Until the last of its ranks had ended.
};

struct JobResult {
  std::vector<Death> deaths;
  std::vector<Fault> never_happened;
  std::vector<World> worlds;     ///< At least one.
  std::filesystem::path states;  ///< Where the final states are, see Job::state_file().
  std::vector<SecondStart> second_starts;
  /// What the job may never do: go on from an older step than the newest that can be had, or
  /// acknowledge a step that is another job's.
  std::vector<std::string> wrong;
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
  // job.cpp
  void start(Seat& seat);
  [[nodiscard]] ProcessPlan plan(int rank, const std::string& launch,
                                 const std::filesystem::path& log) const;
  [[nodiscard]] ProcessPlan plan(Seat& seat, const std::string& launch);
  [[nodiscard]] std::vector<std::string> nccl_variables(int rank) const;
  [[nodiscard]] std::filesystem::path log_file(int rank) const;
  /// Where a rank that is told to write no files would put them.
  [[nodiscard]] std::filesystem::path unused_state() const {
    return options_.directory / "no-files-here";
  }
  [[nodiscard]] std::string name_of_start() const;
  [[nodiscard]] std::filesystem::path over_file() const;
  [[nodiscard]] std::filesystem::path make_states() const;
  void reap();
  void ended(Seat& seat, const End& end);
  void replace_the_dead();
  void settle();
  void finish_death(Death& death);
  void check_time() const;
  void show();
  [[nodiscard]] bool done() const;
  [[nodiscard]] std::uint64_t job_step() const;
  [[nodiscard]] std::string what_all_do() const;

  // job_events.cpp
  void pump(int wait_ms);
  void note(const Seat& seat, const Event& event);
  void trace(const Seat& seat, const Event& event);
  void handle(Seat& seat, const Event& event);
  void take_recovered(Seat& seat, const Event& event);
  struct Lost {
    int reporter;
    int named;
    std::int64_t at;
    std::string error, why;
  };
  void take_lost(const Lost& lost);
  static void take_point(Seat& seat, const Event& event);
  void fault_begins(Seat& seat, const Event& event);

  // job_restarts.cpp
  void becomes_zombie(Seat& seat, std::size_t death);
  void all_go_down(Seat& first, Death death);
  void hear_last_words(Seat& seat);
  void start_anew(const Fault& fault, std::uint64_t step);
  void mind_zombies();
  void see_end(Zombie& zombie, const End& end);
  [[nodiscard]] std::filesystem::path go_on_file(const Fault& fault) const;
  [[nodiscard]] bool healthy() const;
  void mind_second_start();
  void begin_second_start(const Fault& fault);
  void end_second_start();

  // job_rivals.cpp
  void begin_rival(const Fault& fault, std::uint64_t step);
  void mind_rival();
  void rival_takes_the_seats();
  void end_rival();
  void drop_rival();

  // job_checks.cpp
  void check_resources(std::uint64_t generation);
  void check_recovered(std::uint64_t generation, std::uint64_t step);
  void check_vaults();
  void take_world(std::uint64_t step);
  [[nodiscard]] std::uint64_t newest_on_disks() const;

  // job_hosts.cpp
  [[nodiscard]] std::vector<std::filesystem::path> all_vaults() const;
  [[nodiscard]] std::filesystem::path vault_of(int rank) const;
  [[nodiscard]] int host_of(int rank) const;
  [[nodiscard]] int ranks_beside(int rank) const;
  [[nodiscard]] int disk_of(int rank) const;
  [[nodiscard]] std::filesystem::path disk_seen_by(int rank) const;
  void wipe_vault(std::optional<int> rank);
  void lose_namespaces(int host);
  [[nodiscard]] bool host_is_down(const Seat& seat) const;
  void lose_host(const Seat& seat);

  JobOptions options_;
  Signals& signals_;
  Display& display_;
  JobResult result_;
  std::vector<std::unique_ptr<Seat>> seats_;
  std::vector<Fault> pending_;  // not yet happened
  int starts_ = 1;              // of the whole job
  Seating seating_;
  std::list<Zombie> zombies_;
  std::optional<Second> second_;
  std::optional<Rival> rival_;
  bool rival_won_ = false;  // it has the seats of the present start
  // Steps before which the ranks wait for the end of a start that was refused, and for which file.
  std::vector<std::pair<std::uint64_t, std::filesystem::path>> rival_holds_;
  std::map<std::uint64_t, std::uint64_t> complete_;  // of a generation, the newest complete step
  // Of a number of ranks and a step, those that wrote it, and on which of the disks.
  std::map<std::pair<int, std::uint64_t>, std::map<int, int>> persisted_;
  std::vector<Lost> unexplained_;
  Progress progress_;
  std::ofstream trace_;
  std::int64_t started_ = 0;
  std::uint64_t checked_generation_ = 0;
};

}  // namespace meshstage::tools::drill
