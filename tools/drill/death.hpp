#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "tools/drill/arguments.hpp"

namespace meshstage::tools::drill {

/// What a rank did when it passed this point: "receiving chunk 3/11". Numbers of 0 are left out.
std::string describe_point(std::string_view point, std::uint64_t chunk, std::uint64_t chunks);

/// One rank (or all) that was killed, stopped or lost, and what became of it. Times in nanoseconds
/// of CLOCK_MONOTONIC.
struct Death {
  Fault fault;
  int ranks = 0;           ///< World size.
  std::uint64_t step = 0;  ///< The step it had begun to train.
  std::string doing;       ///< "receiving chunk 3/11"
  std::string point;       ///< The last protocol point it passed; empty: none.
  std::int64_t at = 0;
  std::map<int, std::int64_t> noticed;  ///< By rank.
  /// The rank whose death they noticed, where it is another one's: a generation ends once, and of
  /// several that die in it the first to be noticed is the one that is named.
  std::optional<int> along_with;
  std::map<int, int> misnamed;   ///< Rank that took another one for the dead, and which.
  std::set<std::string> errors;  ///< What they were told: "peer lost", "peer silent".
  std::int64_t seen_by_drill = 0;
  bool with_disk = false;  ///< Its host's disk is lost, too.

  bool over = false;     ///< It died when everything was agreed: nobody takes its place.
  bool settled = false;  ///< All ranks train again.
  std::uint64_t generation = 0;
  std::uint64_t recovered_step = 0;
  std::string source;  ///< "own memory", "holder memory", "disk" or "nothing"
  int from_rank = -1;  ///< Whose memory that was.
  std::int64_t resumed_at = 0;
  int old_world = 0;        ///< Not 0: from files of so many ranks, another number than now.
  int old_processes = 0;    ///< After a stop: those that must still end.
  int lost_with_hosts = 0;  ///< Of those, the ones that must be fenced but went with their hosts.
  std::string woken;        ///< After a stop: how the old processes ended.

  /// Until the last survivor noticed (without survivors: the drill itself).
  [[nodiscard]] std::optional<double> detected_ms() const;
  [[nodiscard]] double resume_ms() const;  ///< Until the last rank had recovered.
  /// The line for people.
  [[nodiscard]] std::string text() const;
};

/// Who knows that the generation has ended in which `death` happened, and since when: by that
/// death, or by one of `others` that is not settled either (a death of all does not count: nobody
/// is left).
struct Witnesses {
  std::map<int, std::int64_t> noticed;  ///< By rank.
  std::optional<int> along_with;        ///< Whose death, if nobody noticed this one.
};
[[nodiscard]] Witnesses witnesses(const Death& death, const std::vector<Death>& others);

/// As `--json` prints it.
void to_json(nlohmann::ordered_json& out, const Death& death);

}  // namespace meshstage::tools::drill
