#pragma once
#include <chrono>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tools/run/reports.hpp"

namespace meshstage::tools::run {

/// After how long a rank hangs for which others wait. None: never.
struct HangRules {
  /// Its process reports nothing: all its threads hang. A rank that is merely slow, or in a long
  /// step, has a thread that reports.
  std::optional<std::chrono::milliseconds> silent{30'000};
  /// Its process reports, but its trainer does not come to the generation that the others form. It
  /// may hang, or be in a long step, so there is no default.
  std::optional<std::chrono::milliseconds> away;
};

/// A rank that hangs, and how that shows: "no sign of life for 31 s while rank 0 waited for it".
struct Hang {
  int rank = 0;
  std::string how;
};

/// Which rank hangs: a pure function of what the ranks of this host report. Others wait for a rank
/// while one of them reports that it is forming a generation, for no generation is formed without
/// every rank. Ranks are numbered from 0 on this host, but Hang::how names them as the job does.
/// Times are any steady clock's.
class Hangs {
 public:
  using Time = std::chrono::nanoseconds;
  using Kind = Report::Kind;
  /// A rank that reported so recently is alive now.
  static constexpr std::chrono::seconds kFresh{5};
  /// Without a look for so long the watcher itself did not run (it was stopped, or its output was),
  /// so what the ranks have reported meanwhile may be lost, and the time does not count.
  static constexpr std::chrono::seconds kLongestPause{5};

  static constexpr std::chrono::milliseconds kLongestTurn{500};

  /// `first_rank`: the job's number of rank 0 here.
  Hangs(int ranks, int first_rank, HangRules rules);

  /// The rank has a new process, or none. Reports of the process before count no more, whenever
  /// they come.
  void started(int rank);
  void reported(int rank, Kind kind, std::uint64_t token, Time now);
  /// Reports may have been lost until now: they were not read for longer than kLongestTurn, and the
  /// socket keeps only about ten. The time until now does not count.
  void missed(Time now) { watching_ = now; }
  /// A rank that hangs now, if any. Call it at least every second while reports come.
  [[nodiscard]] std::optional<Hang> look(Time now);

 private:
  struct Seat {
    std::set<std::uint64_t> tokens, old_tokens;  ///< Of this process, of those before.
    std::optional<Time> heard;                   ///< Last. None: it reports nothing.
    std::optional<Time> forming;                 ///< Since then, without a pause.
    Time away{0};                                ///< Since then it is not forming.
  };
  [[nodiscard]] bool is_fresh(const Seat& seat, Time now) const;

  const int first_rank_;
  const HangRules rules_;
  std::vector<Seat> seats_;
  std::optional<Time> looked_;
  Time watching_{0};  ///< Since then, without a pause.
};

}  // namespace meshstage::tools::run
