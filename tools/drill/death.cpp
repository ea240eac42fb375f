#include "tools/drill/death.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <meshstage/core/generation/number.hpp>
#include <nlohmann/json.hpp>

namespace meshstage::tools::drill {
namespace {

using Phrase = std::pair<std::string_view, std::string_view>;
constexpr std::array<Phrase, 24> kPhrases{{
    {"formed", "joining the others"},
    {"claimed", "saying which images it has"},
    {"chosen", "choosing the step to recover"},
    {"choice-learned", "learning which step to recover"},
    {"fetch-started", "fetching an image"},
    {"fetched", "having fetched an image"},
    {"ready-to-restore", "ready to restore"},
    {"established", "announcing the recovered step"},
    {"restoring", "restoring its state"},
    {"own-writing", "staging"},
    {"offered", "offering its image"},
    {"replica-writing", "receiving its ward's image"},
    {"chunk-sent", "sending chunk"},
    {"chunk-received", "receiving chunk"},
    {"own-sealed", "having sealed its image"},
    {"replica-sealed", "having sealed its ward's image"},
    {"voted", "waiting for the outcome"},
    {"failed", "having given up a checkpoint"},
    {"first-noted", "noting the first complete step"},
    {"decided", "announcing the outcome"},
    {"complete", "having completed a checkpoint"},
    {"persisted", "having written to disk"},
    {"pruned", "having pruned its files"},
    {"finishing", "finishing"},
}};

double ms_between(std::int64_t from, std::int64_t to) {
  return std::max(0.0, std::floor(static_cast<double>(to - from) * 1e-3) * 1e-3);  // to the us
}

/// "0,2,4".
std::string ranks_of(const std::map<int, std::int64_t>& noticed) {
  std::vector<int> who;
  for (const auto& [rank, when] : noticed) who.push_back(rank);
  return fmt::format("{}", fmt::join(who, ","));
}

std::string_view past(const Death& death) {
  switch (death.fault.how) {
    case How::kKill:
      return "killed";
    case How::kStop:
      return death.fault.half ? "killed or stopped" : "stopped";
    case How::kRestart:
      return "killed";
    case How::kTwice:
      break;
    case How::kLose:
      if (!death.fault.rank) return "lost with their vaults";
      return death.with_disk ? "lost with its vault and its host's disk" : "lost with its vault";
  }
  return "?";
}

/// All ranks went down: what became of the job.
std::string begun_again(const Fault& fault) {
  std::string line = " | noticed by nobody left, the job was started again";
  if (fault.how == How::kStop && !fault.rank) {
    line = " | the job was started anew beside them";
  } else if (fault.how == How::kRestart) {
    line = " | the job was started anew";
  }
  if (fault.twice) line += ", two times at once";
  if (fault.rotate) line += ", each rank on the next host";
  if (fault.swap) line += ", hosts changed their ranks in pairs";
  if (fault.ranks > 0) {
    line += fmt::format(", as {} rank{}", fault.ranks, fault.ranks == 1 ? "" : "s");
  }
  return line;
}

}  // namespace

std::string describe_point(std::string_view point, std::uint64_t chunk, std::uint64_t chunks) {
  if (point.empty()) return "training";
  const auto* found = std::find_if(kPhrases.begin(), kPhrases.end(),
                                   [point](const Phrase& p) { return p.first == point; });
  if (found == kPhrases.end()) return fmt::format("at {}", point);
  if (chunks == 0) return std::string(found->second);
  return fmt::format("{} {}/{}", found->second, chunk, chunks);
}

std::optional<double> Death::detected_ms() const {
  if (!fault.rank || ranks == 1) return ms_between(at, seen_by_drill);
  if (noticed.empty()) return std::nullopt;
  std::int64_t last = at;
  for (const auto& [rank, when] : noticed) last = std::max(last, when);
  return ms_between(at, last);
}

double Death::resume_ms() const { return settled && !over ? ms_between(at, resumed_at) : 0; }

std::string Death::text() const {
  std::string line = fault.rank ? fmt::format("rank {}", *fault.rank) : "all ranks";
  line += fmt::format(" {} at step {}, {}", past(*this), step, doing);
  if (over) return line + " | the job was over for everyone: nothing to recover";

  if (const auto ms = detected_ms(); !fault.rank || ranks == 1) {
    line += begun_again(fault);
  } else if (along_with && ms) {
    line += fmt::format(
        " | in the same generation as rank {}, whose death was noticed by {} in "
        "{:.0f} ms",
        *along_with, ranks_of(noticed), *ms);
  } else if (!ms) {
    line += " | noticed by nobody";
  } else {
    line += fmt::format(" | noticed by {} in {:.0f} ms", ranks_of(noticed), *ms);
    const bool plain = errors.empty() || (errors.size() == 1 && errors.contains("peer lost"));
    if (!plain) line += fmt::format(" as {}", fmt::join(errors, ", "));
  }
  for (const auto& [rank, other] : misnamed) {
    line += fmt::format(" (rank {} named {})", rank,
                        other < 0 ? std::string("nobody") : fmt::format("rank {}", other));
  }
  if (source == "nothing" || source.empty()) {
    line += " | nothing was staged yet: from the start";
  } else if (source == "holder memory" && fault.rank) {
    line += fmt::format(" | step {} from rank {}'s memory", recovered_step, from_rank);
  } else if (source == "holder memory") {
    line += fmt::format(" | step {} from each other's memory", recovered_step);
  } else if (old_world > 0) {
    line += fmt::format(" | step {} put together from {} files", recovered_step,
                        old_world == 1 ? "1 rank's" : fmt::format("{} ranks'", old_world));
  } else if (source == "disk") {
    line += fmt::format(" | step {} from disk", recovered_step);
  } else {
    line +=
        fmt::format(" | step {} from {} own memory", recovered_step, fault.rank ? "its" : "their");
  }
  const std::uint64_t redone = step > recovered_step ? step - recovered_step : 0;
  line += fmt::format(" | {} step{} redone", redone, redone == 1 ? "" : "s");
  if (!woken.empty()) line += " | " + woken;
  return line;
}

Witnesses witnesses(const Death& death, const std::vector<Death>& others) {
  Witnesses found{death.noticed, {}};
  for (const auto& other : others) {
    if (&other == &death || other.settled || other.along_with || !other.fault.rank) continue;
    for (const auto& [rank, when] : other.noticed) {
      // Who had noticed before this one died was in the next generation by then, or on its way.
      if (when < death.at || rank == death.fault.rank) continue;
      found.noticed.emplace(rank, when);
      if (death.noticed.empty() && !found.along_with) found.along_with = other.fault.rank;
    }
  }
  return found;
}

void to_json(nlohmann::ordered_json& out, const Death& death) {
  out = nlohmann::ordered_json::object();
  if (death.fault.rank) {
    out["rank"] = *death.fault.rank;
  } else {
    out["rank"] = "all";
  }
  out["step"] = death.step;
  out["point"] =
      death.point.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(death.point);
  out["how"] = to_string(death.fault.how);
  if (death.fault.rotate) out["seats"] = "next host";
  if (death.fault.swap) out["seats"] = "swapped";
  if (death.fault.ranks > 0) out["ranks"] = death.fault.ranks;
  const auto detected = death.detected_ms();
  out["detected_ms"] = detected ? nlohmann::ordered_json(*detected) : nlohmann::ordered_json();
  out["generation"] = generation_in_run(death.generation);
  out["recovered_step"] = death.recovered_step;
  out["source"] = death.source;
  if (death.source == "holder memory") out["holder"] = death.from_rank;
  out["resume_ms"] = death.resume_ms();
  if (death.fault.how == How::kStop && !death.fault.rank) {
    out["old_processes"] = death.fault.wake ? "fenced" : "killed";
  }
  if (death.lost_with_hosts > 0) out["lost_with_hosts"] = death.lost_with_hosts;
}

}  // namespace meshstage::tools::drill
