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
  /// The unit that is lost at once.
  DomainLevel level = DomainLevel::kHost;
  /// Copies of images borrow tensors from the ranks that lender_of() finds in other domains of this
  /// level. Nothing (the default): copies are whole.
  std::optional<DomainLevel> borrowed = {};
  /// Losses above the smallest fatal size are counted by listing the fatal ones, if the list has at
  /// most so many entries (a loss with two reasons is listed twice and counted once).
  std::uint64_t enumerate_at_most = 200'000;
  /// Counts go up to this many lost domains (fewer if there are fewer).
  int count_up_to = 4;
};

/// How a number in LossCount is known.
enum class Knowledge : std::uint8_t {
  kProven,        ///< by the proof at survive()
  kEnumerated,    ///< every fatal set was listed
  kNotEnumerated  ///< too many sets: `survived` says nothing
};

/// The number of sets of `lost` domains, and of those sets after whose loss every element is still
/// somewhere.
struct LossCount {
  int lost = 0;
  double sets = 0;  ///< exact below 2^53
  double survived = 0;
  Knowledge how = Knowledge::kNotEnumerated;
};

/// The losses that one tensor survives, or that the ranks' own state survives.
struct Survival {
  std::string name;  ///< "" for the state of the ranks
  /// Every loss of at most so many domains is survived. The number of domains if there is nothing
  /// to lose.
  int always_survived = 0;
  /// The first set (fewest domains, then lowest numbers) whose loss is not survived, ascending;
  /// empty if there is nothing to lose.
  std::vector<int> first_lost;
  /// A rank whose part is lost then; all ranks with the same part lose it.
  std::optional<int> lost_rank;
  std::vector<LossCount> counts;  ///< lost = 1, 2, ...
};

struct SurviveReport {
  int domains = 0;
  /// For the images of the ranks: each is whole in its rank's memory and in its holders' copies.
  /// Without borrowed tensors this also holds for state that only one rank has (random state,
  /// counters, and everything else that is no tensor on the mesh).
  Survival ranks;
  std::vector<Survival> tensors;
};

/// Computes which losses of ranks, hosts or racks the copies survive. A lost domain loses its
/// ranks' memory and the copies that they held; everything else remains.
///
/// Exact for any size. A *part* is the elements that the ranks of one same_shard_ranks() set have.
/// It lies in a set D of domains: those of these ranks and of the holders of their copies. A loss F
/// destroys the part if and only if D is a subset of F.
/// So every loss of fewer domains than the smallest D is survived, and the smallest D itself (the
/// lowest of them) is the first loss that is not. The number of distinct smallest sets D is exactly
/// the number of fatal losses of that size. Larger fatal losses (all sets that contain a D) are
/// listed where they are few enough; otherwise they are kNotEnumerated.
///
/// With borrowed tensors the copies of rank r's image need each lender t of lenders_of()[r]. So a
/// loss F destroys r's image if F contains r's domain and also either the domains of all its
/// holders or the domain of one t. The sets D of an image are therefore {r and its holders} and,
/// for each t, {r, t}. Copies lack borrowed parts of tensors, so D of such a part has only the
/// domains of the ranks that have it.
///
/// Throws InvalidArgument if holders, mesh and domains do not fit each other.
[[nodiscard]] MESHSTAGE_API SurviveReport survive(const FailureDomains& domains,
                                                  const Holders& holders, const DeviceMesh& mesh,
                                                  std::span<const TensorSpec> tensors,
                                                  const SurviveOptions& options = {});

}  // namespace meshstage
