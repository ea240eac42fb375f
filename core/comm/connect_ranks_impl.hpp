#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <meshstage/core/comm/membership.hpp>

namespace meshstage::detail {

/// How one attempt to form a generation ended.
struct Attempted {
  std::optional<Generation> generation;
  /// There is none: why. A fault that this rank met, else what its outcome in the Store says.
  std::string why;
};

/// Why an attempt ends that a rank leaves at its deadline.
[[nodiscard]] std::string gave_up_text(int rank);
/// Why an attempt ends in which a rank cannot wait for the outcome: the Store failed, or there is
/// no memory.
[[nodiscard]] std::string deaf_text(int rank, const std::string& why);
/// True if a rank could not be reached, or could not wait. An attempt that ended because a rank
/// left, or because a newer one was begun, says nothing of why no attempt succeeds.
[[nodiscard]] bool is_a_fault(std::string_view why);

/// Connects this rank, which has its place in that generation, to its peers, and waits until all
/// ranks are connected: they report up the control tree, the root creates "formed", and that goes
/// down the tree. An attempt that fails is abandoned in the Store for all and leaves no address
/// there. Throws Timeout at the deadline and what the Store throws; abandoned then, too.
[[nodiscard]] Attempted connect_ranks(const MembershipOptions& options, std::uint64_t number,
                                      const std::string& claim, Deadline deadline);

}  // namespace meshstage::detail
