#pragma once
#include <optional>

#include "tools/drill/arguments.hpp"

namespace meshstage::tools::drill {

/// Where the ranks of a job sit in a drill that moves them, each host with a vault of its own.
struct Seating {
  int ranks = 1;
  int moved = 0;         ///< So many hosts further on than at first sits each rank, ...
  bool swapped = false;  ///< ... and then each two neighbouring hosts have changed their ranks.
};

/// How the ranks sit after the fault.
[[nodiscard]] Seating after(const Fault& fault, Seating before);

/// The host that the rank sits on, from 0 to Arguments::host_count() - 1.
[[nodiscard]] int host_of(const Arguments& arguments, int rank, Seating seating = {});

/// The first rank of `before` whose images (in memory, or on the hosts' own disks) lie only on
/// hosts without a rank of `after`: neither its own image nor a copy is within reach of the
/// restarted job. None where all are.
[[nodiscard]] std::optional<int> left_behind(const Arguments& arguments, Seating before,
                                             Seating after);

}  // namespace meshstage::tools::drill
