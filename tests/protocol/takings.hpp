#pragma once
#include <array>
#include <cstdint>
#include <string>

#include "tests/support/explorer/breadth_first.hpp"

/// A model of what happens to vaults when a job is started while processes of an older start are
/// still there, killed or stopped: each load, store, lock and compare-and-swap is a step, and a
/// process may be stopped for ever between any two. The slots' words are changed by the functions
/// that the vault uses (core/vault/slot_word.hpp).
///
/// Launch O runs, its step 1 is complete, and it stages 2 and 3. X, and then Y, take the job: by
/// one creation in the Store, then each rank takes its vault, all choose, bring the chosen step
/// into slots of their own, establish it and stage a step. Rank r's vault holds what covers rank r.
namespace meshstage::takings {

/// Each can be left out, and then a promise breaks (takings_test.cpp).
struct Rules {
  bool look = true;                 ///< The root asks the Store before it decides ...
  bool look_after_last_yes = true;  ///< ... and not before the last yes.
  bool swap = true;                 ///< Begin and seal change the word by compare-and-swap ...
  bool owned_epoch = true;     ///< ... from the epoch owned since the taking, not as just loaded.
  bool raise_first = true;     ///< A taker raises the epoch before it reads a header.
  bool locked_is_read = true;  ///< Sealed slots of a vault whose lock is held are claimed.
  bool locked_is_not_written = true;  ///< A taker makes slots of its own beside a held lock.
  bool free_is_adopted = true;        ///< Older incarnations whose lock is free are claimed, too.
};

struct Bounds {
  int ranks = 2;
  int launches = 2;
  int old_steps = 2;  ///< How many steps O stages: 2, then 3.
  int kills = 0;
  int unanswered = 0;      ///< Looks that the Store does not answer: the round fails.
  bool elsewhere = false;  ///< X runs on hosts that have no vault of O.
  Rules rules;
};

constexpr int kMostRanks = 2;
constexpr int kMostLaunches = 3;
constexpr int kMostIncarnations = 3;

struct Slot {
  std::uint8_t state, epoch;          ///< The word.
  std::uint8_t header;                ///< The step that the header names.
  std::array<std::uint8_t, 2> bytes;  ///< The step whose bytes these are.
};

struct Incarnation {
  std::uint8_t lock;  ///< 0: free, else 1 + launch of its owner.
  std::array<Slot, 2> slots;
};

struct Vault {
  std::uint8_t epoch, incarnations;
  std::array<Incarnation, kMostIncarnations> at;
};

/// What a process does next.
enum class At : std::uint8_t {
  kAbsent,
  kGone,
  kLock,
  kRaise,
  kFreeze,
  kRead,
  kClaimed,  // taking
  kBringBegin,
  kBringHeader,
  kBring0,
  kBring1,
  kBringSeal,
  kReady,
  kIdle,
  kSwap,
  kHeader,
  kBytes0,
  kBytes1,
  kSeal,
  kVoted,  // a step
};

struct Process {
  At at;
  std::uint8_t incarnation, slot, step, base, staged;
  std::uint8_t loaded_state, loaded_epoch;
  std::uint8_t cursor;
  std::uint8_t claims;  ///< Bit s: step s.
};

struct Launch {
  std::uint8_t votes;     ///< Bit r: rank r's yes to `voting` is at the root.
  std::uint8_t voting;    ///< The step that is open.
  std::uint8_t outcome;   ///< Of `voting`: 0 open, 1 complete, 2 failed.
  std::uint8_t complete;  ///< The newest step that was decided.
  std::uint8_t looked;    ///< Without look_after_last_yes: the root looked in time.
  std::uint8_t chosen;
  std::uint8_t established;  ///< 1 + the chosen step.
};

struct State {
  std::uint8_t newest;   ///< The launch that took the job last.
  std::uint8_t decided;  ///< The newest step that any root decided.
  std::uint8_t broken;   ///< Which promise, 0: none.
  std::uint8_t kills, unanswered;
  std::array<Vault, kMostRanks> vaults;
  std::array<Launch, kMostLaunches> launches;
  std::array<std::array<Process, kMostRanks>, kMostLaunches> processes;
};

class Model {
 public:
  using State = takings::State;
  explicit Model(const Bounds& bounds) : bounds_(bounds) {}

  [[nodiscard]] State start() const;
  void moves(const State& s, explorer::Moves<State>& out) const;
  [[nodiscard]] std::string violation(const State& s) const;
  [[nodiscard]] std::string at_rest(const State&) const { return {}; }
  [[nodiscard]] const char* milestone(const State& s) const;

 private:
  void take(const State& s, int launch, int rank, explorer::Moves<State>& out) const;
  void bring(const State& s, int launch, int rank, explorer::Moves<State>& out) const;
  void stage(const State& s, int launch, int rank, explorer::Moves<State>& out) const;
  void decide(const State& s, int launch, explorer::Moves<State>& out) const;
  void faults(const State& s, int launch, int rank, explorer::Moves<State>& out) const;
  [[nodiscard]] bool all_at(const State& s, int launch, At at) const;
  const Bounds bounds_;
};

}  // namespace meshstage::takings
