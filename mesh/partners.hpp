#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/mesh/failure_domains.hpp>

namespace meshstage {

/// holders[r]: the ranks that keep a copy of rank r's image, most wanted first. Never r itself, no
/// rank twice. The other way round, r is a *ward* of its holders.
using Holders = std::vector<std::vector<int>>;

/// Who holds whose copies. With c copies in a world of W ranks; *order* is the ranks sorted by
/// rack, host and number.
enum class PartnerPolicy : std::uint8_t {
  kHalfShift,    ///< r + floor(k*W/(c+1)) mod W, k = 1..c: for one copy r + W/2. The default.
  kRing,         ///< r + 1, ..., r + c mod W: cheap neighbours, often on one host.
  kAcrossHosts,  ///< every copy on another host, all of a rank's copies on different hosts.
  kAcrossRacks,  ///< the same with racks.
  kCliques,      ///< groups of c + 1 or a few more ranks, all of different hosts, that hold each
                 ///< other's copies, so that few ranks depend on any one.
};
/// "half-shift", "ring", "across-hosts", "across-racks", "cliques".
[[nodiscard]] MESHSTAGE_API std::string_view to_string(PartnerPolicy policy) noexcept;
/// Throws InvalidArgument that lists the policies.
[[nodiscard]] MESHSTAGE_API PartnerPolicy parse_partner_policy(std::string_view text);

struct PartnerOptions {
  PartnerPolicy policy = PartnerPolicy::kHalfShift;
  /// Of each image, besides the owner's own: 1 to W-1 (0: none, no protection).
  int copies = 1;
  /// How many wards a rank may have at most (each costs it twice the ward's state in host memory);
  /// 0: no limit. Only kAcrossHosts and kAcrossRacks exceed `copies`, and only where the largest
  /// host (rack) has more than W/(c+1) ranks.
  int max_wards = 0;
};

/// The holders of every rank. Deterministic, so that all ranks compute the same. Every rank has
/// exactly `copies` wards, but for the case said at max_wards. Throws InvalidArgument if the policy
/// cannot be satisfied: why, and what would.
[[nodiscard]] MESHSTAGE_API Holders make_holders(const FailureDomains& domains,
                                                 const PartnerOptions& options = {});

/// Throws InvalidArgument unless these are holders of a world of `world_size`: one list for each
/// rank, of other ranks, none twice.
MESHSTAGE_API void check_holders(const Holders& holders, int world_size);

/// The other way round: wards[h] are the ranks that h keeps copies of, ascending.
[[nodiscard]] MESHSTAGE_API std::vector<std::vector<int>> wards_of(const Holders& holders);

}  // namespace meshstage
