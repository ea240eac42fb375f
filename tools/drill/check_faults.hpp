#pragma once
#include <optional>

#include "tools/drill/arguments.hpp"

namespace meshstage::tools::drill {

/// What the faults ask for can be had, one after the other; they ascend by step. Throws
/// InvalidArgument: one line that names the fault and what would do.
void check_together(const Arguments& arguments);

/// The first rank, in a job of so many, that goes together with all its holders, or with a lender
/// of what they have, so that no memory has its image. None: each has.
[[nodiscard]] std::optional<int> lost_to_memory(const Fault& fault, const Arguments& arguments,
                                                int world);

}  // namespace meshstage::tools::drill
