// The faults that were asked for fit together.
#include "tools/drill/check_faults.hpp"

#include <algorithm>
#include <set>
#include <string>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <meshstage/core/error/error.hpp>

#include "tools/drill/hosts.hpp"

namespace meshstage::tools::drill {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw InvalidArgument(what); }

bool takes(const Fault& fault, int rank) {
  return !fault.rank || *fault.rank == rank ||
         std::find(fault.with.begin(), fault.with.end(), rank) != fault.with.end();
}

/// The fewest ranks that the job may have as it comes to that step.
int fewest_ranks_at(const Arguments& a, std::uint64_t step) {
  int fewest = a.ranks;
  for (const auto& fault : a.faults) {
    if (fault.ranks == 0 || fault.step > step) continue;
    fewest = fault.step < step ? fault.ranks : std::min(fewest, fault.ranks);
  }
  return fewest;
}

/// The job can have as many ranks as the restart asks for.
void check_world(const Fault& fault, int world, const Arguments& a) {
  const std::string option = fault.text();
  if (!a.mesh.empty()) {
    refuse(option + ": a mesh says the number of ranks; write --sharded in place of --mesh");
  }
  if (a.device != "cpu") {
    refuse(option + ": states on devices are not put together anew; leave --device out");
  }
  if (fault.ranks == world) refuse(fmt::format("{}: the job has {} ranks by then", option, world));
  (void)a.holders(fault.ranks);  // says why not, and what would be
}

/// What the start after the fault asks for can be had, by ranks that sit as `before` says.
void check_start(const Fault& fault, Seating before, const Arguments& a) {
  const std::string option = fault.text();
  if ((fault.rotate || fault.swap) && a.host_count() < 2) {
    refuse(option + ": there is one host; give more --ranks, or fewer --ranks-per-host");
  }
  if (fault.ranks > 0) check_world(fault, before.ranks, a);
  // All memory is lost: no vault is left behind, but a host's own disk is.
  const bool files_are_seen = fault.how == How::kLose && !a.local_disks();
  if (!a.hosts_are_apart() || files_are_seen) return;
  if (const auto rank = left_behind(a, before, after(fault, before))) {
    refuse(
        fmt::format("{}: no rank would sit where an image of rank {} is; give more ranks or "
                    "--copies, or leave {} out",
                    option, *rank,
                    fault.rotate ? ":rotate"
                    : fault.swap ? ":swap"
                                 : ":ranks=N"));
  }
}

/// A host that is lost as a whole has no rank that lives on, and with its disk no rank's only
/// images.
void check_lost_hosts(const Fault& fault, int world, const Arguments& a) {
  std::set<int> ranks;
  for (int rank = 0; rank < world; ++rank) {
    for (int other = 0; other < world; ++other) {
      if (takes(fault, other) && host_of(a, other) == host_of(a, rank)) ranks.insert(rank);
    }
  }
  if (ranks.size() != fault.with.size() + 1) {
    refuse(fmt::format("{}: with {} all its ranks; write {}@STEP", fault.text(),
                       a.local_disks() ? "--disks local a host is lost with its disk and"
                                       : "--hosts namespaces a host is lost with",
                       fmt::join(ranks, "+")));
  }
  if (!a.local_disks()) return;
  if (const auto owner = lost_to_memory(fault, a, world)) {
    refuse(
        fmt::format("{}: with --disks local nothing would be left of rank {}; lose fewer hosts at "
                    "once, or give more --copies",
                    fault.text(), *owner));
  }
}

}  // namespace

std::optional<int> lost_to_memory(const Fault& fault, const Arguments& arguments, int world) {
  const auto goes = [&fault](int rank) { return takes(fault, rank); };
  const Holders holders = arguments.holders(world);
  const auto lenders = arguments.lenders();  // all empty where the number of ranks changes
  for (std::size_t owner = 0; owner < holders.size(); ++owner) {
    if (goes(static_cast<int>(owner)) &&
        (std::all_of(holders[owner].begin(), holders[owner].end(), goes) ||
         (owner < lenders.size() &&
          std::any_of(lenders[owner].begin(), lenders[owner].end(), goes)))) {
      return static_cast<int>(owner);
    }
  }
  return std::nullopt;
}

void check_together(const Arguments& a) {
  Seating seating{a.ranks};
  std::set<std::uint64_t> second_starts;
  for (const auto& fault : a.faults) {
    if (fault.of_all()) check_start(fault, seating, a);
    seating = after(fault, seating);
    if (fault.how == How::kTwice && !second_starts.insert(fault.step).second) {
      refuse(fault.text() + ": is given twice");
    }
    if (!fault.rank) continue;
    const int fewest = fewest_ranks_at(a, fault.step);
    const int last =
        std::max(*fault.rank,
                 fault.with.empty() ? 0 : *std::max_element(fault.with.begin(), fault.with.end()));
    if (last >= fewest) {
      refuse(fmt::format("{}: there is no rank {} by then; ranks are 0 to {}", fault.text(), last,
                         fewest - 1));
    }
    if (fault.how == How::kStop && fewest == 1) {
      refuse("--stop needs another rank that notices: give --ranks 2 or more");
    }
    if (fault.how == How::kLose && a.hosts_go_whole()) check_lost_hosts(fault, seating.ranks, a);
  }
}

}  // namespace meshstage::tools::drill
