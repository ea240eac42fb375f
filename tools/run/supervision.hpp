#pragma once
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tools/process/process.hpp"

namespace meshstage::tools::run {

/// The exit status by which a rank asks that all ranks of the job are started anew (EX_TEMPFAIL).
inline constexpr int kRestartAllStatus = 75;

/// Which ranks are started anew when one of them died.
enum class RestartPolicy : std::uint8_t {
  kAlone,  ///< The dead one: the others live, lose it, and rejoin.
  kAll,    ///< Every rank of this host, after the living ones were ended.
};

struct SupervisionRules {
  int ranks = 1;  ///< Of this host.
  RestartPolicy policy = RestartPolicy::kAlone;
  std::optional<std::uint64_t> max_restarts;  ///< Of the whole job. None: no limit.
  /// So many deaths in a row of one rank, each before it joined the job, end the job: what cannot
  /// start does not start the fourth time either.
  int early_deaths = 3;
  /// A rank that lived for so long counts as joined, for not every program reports that it joined.
  std::chrono::milliseconds settled{60'000};
  /// Wait before the restart after the first early death; doubled with each further one.
  std::chrono::milliseconds first_backoff{1'000};
  std::chrono::milliseconds longest_backoff{30'000};
};

/// What the launcher does about a rank that ended.
struct Decision {
  enum class Kind : std::uint8_t {
    kNothing,     ///< The rank has finished; others still run.
    kDone,        ///< All ranks have finished.
    kRestart,     ///< Start this rank anew after `delay`.
    kRestartAll,  ///< End every rank, then start all of them after `delay`.
    kFail,        ///< End every rank and then the job, with `exit_status`.
  } kind = Kind::kNothing;
  int rank = -1;
  std::chrono::milliseconds delay{0};
  std::string why;      ///< "rank 2: signal 9"
  int exit_status = 0;  ///< For kFail.
};

/// Who is started anew, when, and when the job ends: a pure function of what happened. Ranks are
/// numbered from 0 on this host. Times are any steady clock's.
class Supervision {
 public:
  using Time = std::chrono::nanoseconds;

  explicit Supervision(SupervisionRules rules);

  void started(int rank, Time now);
  /// The rank's process reported that it is part of a generation of the job.
  void joined(int rank);
  /// The rank's process ended by itself, or was killed. `how` stands in Decision::why.
  [[nodiscard]] Decision ended(int rank, End end, Time now, const std::string& how);
  [[nodiscard]] Decision ended(int rank, End end, Time now) {
    return ended(rank, end, now, end.text());
  }
  /// The launcher ended all ranks, to start them anew.
  void all_ended();

  [[nodiscard]] std::uint64_t restarts() const noexcept { return restarts_; }

 private:
  struct Seat {
    Time started{0};
    bool joined = false;
    bool finished = false;
    int early_deaths = 0;
  };
  SupervisionRules rules_;
  std::vector<Seat> seats_;
  std::uint64_t restarts_ = 0;
};

}  // namespace meshstage::tools::run
