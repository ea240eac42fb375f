#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/mesh/partners.hpp>
#include <meshstage/mesh/replicated.hpp>

namespace meshstage {

struct SurviveOptions {
  /// What is lost at once.
  DomainLevel level = DomainLevel::kHost;
  /// Copies of images borrow what lender_of() finds in another domain of this level. Nothing (the
  /// default): copies are whole.
  std::optional<DomainLevel> borrowed = {};
  /// Losses above the smallest fatal size are counted by listing the fatal ones, if that takes at
  /// most so many entries (a loss with two reasons is listed twice, and counted once).
  std::uint64_t enumerate_at_most = 200'000;
  /// Counts go up to this many lost domains (fewer if there are fewer).
  int count_up_to = 4;
};

/// How a number in LossCount is known.
enum class Knowledge : std::uint8_t {
  kProven,        ///< by the argument at survive()
  kEnumerated,    ///< every fatal set was listed
  kNotEnumerated  ///< too many sets: `survived` says nothing
};

/// Of all sets of `lost` domains, how many leave every element somewhere.
struct LossCount {
  int lost = 0;
  double sets = 0;  ///< exact below 2^53
  double survived = 0;
  Knowledge how = Knowledge::kNotEnumerated;
};

/// What one thing survives: a tensor, or the state of the ranks as such.
struct Survival {
  std::string name;  ///< "" for the state of the ranks
  /// Every loss of at most so many domains leaves all of it somewhere. All of them, if there is
  /// nothing to lose.
  int always_survived = 0;
  /// The first set (fewest, then lowest numbers) that does not, ascending; empty if there is
  /// nothing to lose.
  std::vector<int> first_lost;
  /// A rank whose part is lost then, and all that have the same part.
  std::optional<int> lost_rank;
  std::vector<LossCount> counts;  ///< lost = 1, 2, ...
};

struct SurviveReport {
  int domains = 0;
  /// Each rank's image: whole in its own memory, and in its holders' copies. Without borrowed
  /// tensors that is as much as to say: what is its own (random state, counters, anything that is
  /// not a tensor on the mesh).
  Survival ranks;
  std::vector<Survival> tensors;
};

/// What losses of ranks, hosts or racks the copies survive: nothing of a lost domain remains,
/// neither its ranks' memory nor the copies they held; all else does.
///
/// Exact for any size. A part (the elements that one class of same_shard_ranks has) lies in a set D
/// of domains: those of the ranks that have it and of the holders of those ranks' copies of it. A
/// loss F destroys it if and only if D is a subset of F. So every loss of fewer domains than the
/// smallest D is survived, and the smallest D itself (the lowest of them) is the first that is not.
/// The number of distinct smallest sets D is also exactly the number of fatal losses of that size;
/// larger fatal losses (all sets that contain a D) are listed where they are few enough, and else
/// called not enumerated.
///
/// With borrowed tensors the copies of rank r's image need each lender t of lenders_of()[r]. So a
/// loss F leaves r's image somewhere unless F contains r's domain, and either those of all its
/// holders or that of one t: the sets D of an image are {r and its holders} and, for each t, {r,
/// t}. No copy has a borrowed part of a tensor: its D is that of the ranks that have it.
///
/// Throws InvalidArgument if holders, mesh and domains do not fit each other.
[[nodiscard]] MESHSTAGE_API SurviveReport survive(const FailureDomains& domains,
                                                  const Holders& holders, const DeviceMesh& mesh,
                                                  std::span<const TensorSpec> tensors,
                                                  const SurviveOptions& options = {});

}  // namespace meshstage
