#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/mesh/failure_domains.hpp>

namespace meshstage {

/// holders[r]: the ranks that hold a copy of rank r's image, in order of preference. It has neither
/// r itself nor a rank twice. Rank r is a *ward* of its holders.
using Holders = std::vector<std::vector<int>>;

/// How the holders of each rank are chosen. c is the number of copies, W the world size.
enum class PartnerPolicy : std::uint8_t {
  kHalfShift,    ///< r + floor(k*W/(c+1)) mod W, k = 1..c: for one copy r + W/2. The default.
  kRing,         ///< r + 1, ..., r + c mod W: cheap neighbours, often on one host.
  kAcrossHosts,  ///< Each copy on another host than its owner, a rank's copies on different hosts.
  kAcrossRacks,  ///< Like kAcrossHosts, with racks.
  kCliques,  ///< Groups of c + 1 or a few more ranks on different hosts, which hold each other's
             ///< copies, so that few ranks depend on any one rank.
};
/// "half-shift", "ring", "across-hosts", "across-racks", "cliques".
[[nodiscard]] MESHSTAGE_API std::string_view to_string(PartnerPolicy policy) noexcept;
/// The inverse of to_string(). Throws InvalidArgument; the message lists the policies.
[[nodiscard]] MESHSTAGE_API PartnerPolicy parse_partner_policy(std::string_view text);

struct PartnerOptions {
  PartnerPolicy policy = PartnerPolicy::kHalfShift;
  /// The number of copies of each image, besides the owner's own: 1 to W-1 (0: no copies, no
  /// protection).
  int copies = 1;
  /// The most wards that a rank may have (each costs it twice the ward's state in host memory); 0:
  /// no limit. Only kAcrossHosts and kAcrossRacks give a rank more than `copies` wards, and only
  /// where the largest host (rack) has more than W/(c+1) ranks.
  int max_wards = 0;
};

/// The holders of every rank. Deterministic, so that all ranks compute the same. Every rank has
/// exactly `copies` wards, except in the case described at max_wards. Throws InvalidArgument if the
/// policy cannot be satisfied; the message says why, and which options would work.
[[nodiscard]] MESHSTAGE_API Holders make_holders(const FailureDomains& domains,
                                                 const PartnerOptions& options = {});

/// Throws InvalidArgument unless `holders` fit `world_size`: one list for each rank, of other
/// ranks, none twice.
MESHSTAGE_API void check_holders(const Holders& holders, int world_size);

/// The inverse of `holders`: wards[h] has the ranks whose copies h holds, ascending.
[[nodiscard]] MESHSTAGE_API std::vector<std::vector<int>> wards_of(const Holders& holders);

}  // namespace meshstage
