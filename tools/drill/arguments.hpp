#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <meshstage/mesh/partners.hpp>

namespace CLI {
class App;
}

namespace meshstage::tools::drill {

enum class How : std::uint8_t {
  kKill,  ///< SIGKILL; what is in memory outlives the process.
  kStop,  ///< SIGSTOP: a rank that hangs; replaced, then woken up.
  kLose,  ///< SIGKILL and its vault wiped: the host is gone.
};
std::string_view to_string(How how) noexcept;  ///< "kill", "stop", "lose"

/// One thing that goes wrong: `RANK[+RANK...]@STEP[:POINT]`.
struct Fault {
  How how = How::kKill;
  std::optional<int> rank;  ///< Nothing: all of them.
  std::vector<int> with;    ///< Go down in the same moment as `rank` does.
  std::uint64_t step = 0;   ///< 1..steps: as the rank begins to train it, ...
  std::string point;  ///< ... or, where not empty, when it first passes this point from then on.

  /// "--kill 2@87:chunk-received".
  [[nodiscard]] std::string text() const;
};

/// What the user asked for, checked: every rank, step and point exists.
struct Arguments {
  int ranks = 4;
  std::uint64_t steps = 200;
  std::uint64_t every = 5;
  std::filesystem::path text;       ///< Absolute, readable.
  std::filesystem::path directory;  ///< Empty: a temporary one.
  bool json = false;
  unsigned connections = 0;     ///< Of two ranks for images; 0: by the library's default.
  std::string device = "cpu";   ///< Where the ranks' states live in the run with the faults.
  std::filesystem::path trace;  ///< Empty: none.
  /// (rank, step): that rank alone does not stage that step, so it fails on all.
  std::vector<std::pair<int, std::uint64_t>> leave_out;
  std::vector<Fault> faults;  ///< Ascending by step; at least one.
  std::uint64_t deadline_ms = 0;
  std::uint64_t persist_every = 0;
  std::uint64_t timeout_s = 300;   ///< For each of the two runs.
  std::vector<std::int64_t> mesh;  ///< Of the optimizer's moments; empty: none.
  bool spare_replicated = false;   ///< Replicas borrow what the mesh repeats on another host.
  PartnerOptions partners;
  int ranks_per_host = 1;
  /// Who holds whose images.
  [[nodiscard]] Holders holders() const;
  /// For every rank the lenders of its replicas; none for one that comes back without borrowed
  /// tensors. All empty without spare_replicated.
  [[nodiscard]] std::vector<std::vector<int>> lenders() const;
};

/// The options of `meshstage drill` as typed; complete() checks them.
/// Lives as long as the App they were added to is parsed.
class ArgumentParser {
 public:
  void add_to(CLI::App& command);
  /// Throws InvalidArgument (or NotFound for the text): one line that says the valid form.
  [[nodiscard]] Arguments complete() const;

 private:
  [[nodiscard]] std::filesystem::path find_text() const;
  void check_numbers() const;
  void place(Arguments& a) const;

  Arguments given_;
  std::vector<std::string> kills_, stops_, loses_, left_out_;
  std::optional<std::uint64_t> random_kills_, seed_, persist_every_, deadline_ms_;
  std::optional<int> ranks_;
  std::string text_, policy_;
};

/// `RANK@STEP[:POINT]`, `RANK+RANK@STEP[:POINT]` or `all@STEP[:POINT]`. Throws InvalidArgument.
Fault parse_fault(How how, std::string_view text, int ranks, std::uint64_t steps);

/// `count` kills, drawn from the seed: ranks, steps, points, now and then a second rank while the
/// others recover. Every one of them is reached. Ascending by step.
std::vector<Fault> random_kills(std::uint64_t count, std::uint64_t seed,
                                const Arguments& arguments);

/// What is done when nothing is asked for: the rank after the middle one loses its host in the
/// midst of receiving its ward's image.
Fault default_fault(const Arguments& arguments);

}  // namespace meshstage::tools::drill
