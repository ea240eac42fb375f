// The faults that nobody named: drawn from a seed, or the default.
#include <algorithm>
#include <array>
#include <random>
#include <utility>

#include <meshstage/core/error/error.hpp>

#include "tools/drill/arguments.hpp"
#include "tools/drill/hosts.hpp"

namespace meshstage::tools::drill {
namespace {

// Passed by every rank in every staged step; empty: between the points.
constexpr std::array<const char*, 8> kInEveryStep{"",           "own-writing", "offered",
                                                  "chunk-sent", "own-sealed",  "chunk-received",
                                                  "voted",      "complete"};
// Passed by every rank in every recovery.
constexpr std::array<const char*, 5> kInEveryRecovery{"formed", "claimed", "choice-learned",
                                                      "ready-to-restore", "restoring"};
// Passed where nobody else is.
constexpr std::array<const char*, 3> kAlone{"", "own-writing", "own-sealed"};

/// Numbers of ranks that a restart may have: not far from the first one, which is among them. None
/// where it may not change.
std::vector<int> possible_worlds(const Arguments& arguments) {
  std::vector<int> worlds;
  if (arguments.ranks == 1 || !arguments.mesh.empty() || arguments.device != "cpu") return worlds;
  for (int world = std::max(2, arguments.ranks - 2);
       world <= std::min(kMostRanks, arguments.ranks + 2); ++world) {
    try {
      (void)arguments.holders(world);
      worlds.push_back(world);
    } catch (const InvalidArgument&) {
      // The holders asked for need more ranks.
    }
  }
  return worlds;
}

/// Makes plain restarts of those that would leave images behind, or ask for the ranks that the job
/// has.
void keep_within_reach(std::vector<Fault>& faults, Arguments arguments) {
  for (bool all_fit = false; !all_fit;) {
    all_fit = true;
    arguments.faults = faults;  // they say how many hosts there are
    Seating seating{arguments.ranks};
    for (auto& fault : faults) {
      const Seating next = after(fault, seating);
      if (fault.ranks == seating.ranks ||
          (arguments.hosts_are_apart() && left_behind(arguments, seating, next))) {
        fault.ranks = 0;
        fault.rotate = false;
        all_fit = false;
        break;
      }
      seating = next;
    }
  }
}

}  // namespace

std::vector<Fault> random_kills(std::uint64_t count, std::uint64_t seed, const Arguments& arguments,
                                std::uint64_t faults_of_all) {
  std::mt19937_64 random(seed);
  const auto below = [&random](std::uint64_t n) { return random() % n; };
  const auto worlds = arguments.worlds();
  const auto ranks = static_cast<std::uint64_t>(*std::min_element(worlds.begin(), worlds.end()));
  const std::uint64_t first = std::min<std::uint64_t>(2, arguments.steps);
  std::vector<std::uint64_t> steps(count);
  for (auto& step : steps) step = first + below(arguments.steps - first + 1);
  std::sort(steps.begin(), steps.end());

  const std::uint64_t last_staged = arguments.steps / arguments.every * arguments.every;
  std::vector<Fault> faults;
  for (std::uint64_t i = 0; i < count; ++i) {
    Fault fault;
    fault.step = steps[i];
    fault.rank = static_cast<int>(below(ranks));
    const bool during_recovery = i > 0 && ranks > 1 && below(5) == 0;
    // Each death can spoil one staged step, so there must be one more than deaths to come.
    const bool sure_to_come =
        fault.step + arguments.every * (count - i + faults_of_all) <= last_staged;
    if (during_recovery && faults.back().step > 1) {
      // A second death while the others recover from the one before. One step earlier, so that the
      // rank is sure to have begun it by then.
      const auto other = static_cast<std::uint64_t>(*faults.back().rank) + 1 + below(ranks - 1);
      fault.rank = static_cast<int>(other % ranks);
      fault.step = faults.back().step - 1;
      fault.point = kInEveryRecovery.at(below(kInEveryRecovery.size()));
    } else if (sure_to_come) {
      fault.point =
          ranks > 1 ? kInEveryStep.at(below(kInEveryStep.size())) : kAlone.at(below(kAlone.size()));
    }
    faults.push_back(std::move(fault));
  }
  std::stable_sort(faults.begin(), faults.end(),
                   [](const Fault& a, const Fault& b) { return a.step < b.step; });
  return faults;
}

std::vector<Fault> random_restarts(std::uint64_t count, std::uint64_t seed,
                                   const Arguments& arguments, std::uint64_t kills) {
  std::mt19937_64 random(seed ^ 0x72657374U);  // not the draws of random_kills()
  const auto below = [&random](std::uint64_t n) { return random() % n; };
  const auto worlds = possible_worlds(arguments);
  // Of each three drills one changes the world alone, one the hosts, and one both.
  const std::uint64_t kinds = below(3);
  const bool changes = !worlds.empty() && kinds != 1;
  const bool moves = arguments.host_count() > 1 && kinds != 0;
  const std::uint64_t first = std::min<std::uint64_t>(2, arguments.steps);
  std::vector<std::uint64_t> steps(count);
  for (auto& step : steps) step = first + below(arguments.steps - first + 1);
  std::sort(steps.begin(), steps.end());

  const std::uint64_t last_staged = arguments.steps / arguments.every * arguments.every;
  bool change_next = below(2) == 0;  // where a drill has both, in turns
  int world = arguments.ranks;
  std::uint64_t second_start = 0;
  std::vector<Fault> faults;
  for (std::uint64_t i = 0; i < count; ++i) {
    Fault fault;
    fault.step = steps[i];
    const std::uint64_t kind = below(6);
    if (kind == 0 && second_start != fault.step) {
      fault.how = How::kTwice;
      second_start = fault.step;
      faults.push_back(std::move(fault));
      continue;
    }
    fault.how = kind == 1 || kind == 2 ? How::kStop : How::kRestart;
    fault.wake = kind == 1;
    const bool elsewhere = kind == 3 || kind == 4;
    // Each death can spoil one staged step, so there must be one more than deaths to come.
    if (fault.step + arguments.every * (count - i + kills) <= last_staged) {
      fault.point = arguments.ranks > 1 ? kInEveryStep.at(below(kInEveryStep.size()))
                                        : kAlone.at(below(kAlone.size()));
    }
    if (elsewhere && changes && (!moves || change_next)) {
      const auto which = below(worlds.size());
      world = worlds[which] != world ? worlds[which] : worlds[(which + 1) % worlds.size()];
      fault.ranks = world;
      change_next = false;
    } else if (elsewhere) {
      change_next = true;
      fault.rotate = moves;
    }
    faults.push_back(std::move(fault));
  }
  keep_within_reach(faults, arguments);
  return faults;
}

Fault default_fault(const Arguments& arguments) {
  Fault fault;
  // The only host is not lost as a whole.
  const bool can_lose =
      arguments.ranks > 1 && !(arguments.hosts_go_whole() && arguments.host_count() == 1);
  fault.how = can_lose ? How::kLose : How::kKill;
  fault.rank = arguments.ranks / 2;
  if (arguments.ranks == 1) fault.rank = 0;
  for (int other = 0; can_lose && arguments.hosts_go_whole() && other < arguments.ranks; ++other) {
    const bool same = host_of(arguments, other) == host_of(arguments, *fault.rank);
    if (same && other != *fault.rank) fault.with.push_back(other);
  }
  // In the midst of the run, but where there is something to recover and something still to come.
  const std::uint64_t last_staged = arguments.steps / arguments.every * arguments.every;
  fault.step = std::clamp(arguments.steps * 7 / 16, std::uint64_t{1}, last_staged);
  fault.point = arguments.ranks > 1 ? "chunk-received" : "own-writing";
  return fault;
}

}  // namespace meshstage::tools::drill
