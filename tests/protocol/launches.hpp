#pragma once
#include <array>
#include <cstdint>
#include <string>

#include "tests/support/explorer/breadth_first.hpp"

/// A model of which start of a job owns it: what each process reads of the Store and creates there,
/// and when it touches its vault, with a stop possible between any two. Who is admitted is decided
/// by the function that the membership uses (core/comm/launch.hpp).
///
/// Launch O has formed generation 1 and runs, unless it is stopped or killed; or it died while it
/// formed it. X and Y start at any time.
namespace meshstage::launches {

/// Each can be left out, and then a promise breaks (launches_test.cpp).
struct Rules {
  bool launch_owns = true;     ///< A claim belongs to a launch; ranks of another do not join it.
  bool claim_first = true;     ///< The Store says yes before a vault is touched.
  bool every_rank = true;      ///< Refused only if every rank was seen to renew ...
  bool twice = true;           ///< ... twice: one renewal may have been under way already.
  bool claim_is_epoch = true;  ///< A vault is taken in the epoch that the claim numbers.
  bool survivors_first =
      true;                  ///< Where a rank is gone and another lives, a newcomer waits for it.
  bool lost_forming = true;  ///< A launch that died while it formed leaves nothing to wait for.
};

struct Bounds {
  int launches = 2;      ///< With O.
  bool forming = false;  ///< O died while it formed generation 1 as another number of ranks.
  int stops = 0;      ///< Ranks of O stopped for ever before others start, perhaps amid a renewal.
  int kills = 0;      ///< Processes that are killed.
  int impatient = 0;  ///< Times that a watcher takes a running rank for silent.
  bool unnamed = false;  ///< No launcher names the starts.
  Rules rules;
};

constexpr int kRanks = 2;
constexpr int kMostLaunches = 3;
constexpr int kMostClaims = 6;

enum class At : std::uint8_t { kAbsent, kLook, kCreate, kPlace, kAttach, kWait, kRuns, kEnded };

struct Claim {
  std::uint8_t launch;   ///< 1 + whose.
  std::uint8_t outcome;  ///< 0 forming, 1 formed, 2 abandoned.
  std::uint8_t worked;
  std::uint8_t by;                         ///< The rank that created it.
  std::array<std::uint8_t, kRanks> place;  ///< 1 + the launch whose process joined as that rank.
};

struct Process {
  At at;
  std::uint8_t claim;  ///< 1-based: looked at, or joined.
  std::uint8_t epoch;  ///< In which it took its vault.
  std::uint8_t stopped, under_way, member, killed;
  std::uint8_t as;                        ///< 1 + the launch for which it claims.
  std::array<std::uint8_t, kRanks> seen;  ///< Renewals of each rank since it watches.
};

struct State {
  std::uint8_t claims, stops, kills, impatient, broken;
  std::array<Claim, kMostClaims> claim;
  std::array<std::uint8_t, kRanks> epoch;  ///< Of each rank's vault.
  std::array<std::array<Process, kRanks>, kMostLaunches> processes;
};

class Model {
 public:
  using State = launches::State;
  explicit Model(const Bounds& bounds) : bounds_(bounds) {}

  [[nodiscard]] State start() const;
  void moves(const State& s, explorer::Moves<State>& out) const;
  [[nodiscard]] std::string violation(const State& s) const;
  [[nodiscard]] std::string at_rest(const State& s) const;
  [[nodiscard]] const char* milestone(const State& s) const;

 private:
  void look(const State& s, int launch, int rank, explorer::Moves<State>& out) const;
  void come(const State& s, int launch, int rank, explorer::Moves<State>& out) const;
  void run(const State& s, int launch, int rank, explorer::Moves<State>& out) const;
  void faults(const State& s, int launch, int rank, explorer::Moves<State>& out) const;
  [[nodiscard]] bool healthy(const State& s) const;
  const Bounds bounds_;
};

}  // namespace meshstage::launches
