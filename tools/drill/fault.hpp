#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace meshstage::tools::drill {

enum class How : std::uint8_t {
  kKill,     ///< SIGKILL; what is in memory outlives the process.
  kStop,     ///< SIGSTOP: a rank that hangs; replaced, then woken up.
  kLose,     ///< SIGKILL and its vault wiped: the host is gone.
  kRestart,  ///< All ranks are killed and started anew, maybe elsewhere or in another number.
  kTwice,    ///< The job is started a second time, beside the healthy one.
};
/// "kill", "stop", "lose", "restart", "twice"
std::string_view to_string(How how) noexcept;

/// One thing that goes wrong: `RANK[+RANK...]@STEP[:POINT]`, or of all ranks `all@STEP[:POINT]`.
struct Fault {
  How how = How::kKill;
  std::optional<int> rank;  ///< Nothing: all of them.
  std::vector<int> with;    ///< Go down in the same moment as `rank` does.
  std::uint64_t step = 0;   ///< 1..steps: as the rank begins to train it, ...
  std::string point;  ///< ... or, where not empty, when it first passes this point from then on.
  // How the job comes back. Of a restart, a stop of all, and but for ranks and twice a loss of all:
  bool rotate = false;  ///< Each rank then sits on the next host.
  int ranks = 0;        ///< The job then has so many ranks; 0: as many as before.
  bool wake = false;    ///< Of a stop of all: its processes are woken up in the end; else killed.
  bool swap = false;    ///< Each two neighbouring hosts then change their ranks.
  bool twice = false;   ///< The job is then started two times at the same moment.
  bool half = false;    ///< Of a stop of all: ranks with an even number are killed.

  /// All ranks go down, and the job is started anew.
  [[nodiscard]] bool of_all() const { return !rank && how != How::kTwice; }
  bool operator==(const Fault&) const = default;
  /// "--kill 2@87:chunk-received".
  [[nodiscard]] std::string text() const;
};

/// The most ranks that a drill trains with.
inline constexpr int kMostRanks = 64;

/// `RANK@STEP[:POINT]`, `RANK+RANK@STEP[:POINT]` or `all@STEP[:POINT]`; of all, it may say
/// how the job comes back, in any order: `:rotate` or `:swap`, and but for a loss `:ranks=N` and
/// `:twice`; a stop `:half` and `:wake`, too. `STEP` alone for a second start.
/// Throws InvalidArgument.
Fault parse_fault(How how, std::string_view text, int ranks, std::uint64_t steps);

}  // namespace meshstage::tools::drill
