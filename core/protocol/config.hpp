#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include <meshstage/core/error/export.hpp>

/// Who the ranks are, and which rules hold.
namespace meshstage::protocol {

/// Each protocol rule as a switch, for the explorer only: production leaves all of them on. With
/// any of them off, the explorer finds a run that loses or mixes a step (tests/protocol).
struct Rules {
  bool generations_apart = true;    ///< 1: messages and images of other generations stay out
  bool verify_claims = true;        ///< 5a: claim only what was verified just now
  bool stage_beside_base = true;    ///< 2: a new step goes to the slot that does not hold its base
  bool vote_needs_replicas = true;  ///< 2: yes only when the wards' replicas are sealed too
  bool vote_needs_lent = true;      ///< 2: yes only when what it lends is what they borrow
  bool promise = true;  ///< 3: nothing is staged before the outcome of the last is known
  bool receiver_knows_outcome =
      true;                     ///< 3: an offer is accepted on what it says of the round before
  bool all_must_vote = true;    ///< 4: one rank without a yes is enough to keep a step incomplete
  bool note_first = true;       ///< 5: the Store's note precedes the first complete
  bool look = true;             ///< 12: the root asks the Store after the last yes, then decides
  bool beyond_unknown = true;   ///< 5b: nothing is chosen that is not newer than what was left out
  bool newest_covered = true;   ///< 5b: the newest covered step, not the newest marked complete
  bool whole_claims = true;     ///< 5b: a replica counts only with what it borrows
  bool restore_holders = true;  ///< 5c: redundancy is whole again at owner and holder
  bool fetch_beside_base = true;  ///< 5c: a fetch spares the chosen step's base
  bool agree_first = true;        ///< 5d: everyone is ready before anyone restores or stages
  bool structure_first = true;    ///< 5e: one mismatch stops all
  bool quarantine = true;         ///< 8: a broken generation's transfers write nowhere any more
  bool finish_together = true;    ///< 9: vaults are removed when everyone finishes
  bool finish_is_a_no = true;     ///< 9: whoever finishes votes no on what it has not staged
  bool orders_with_base = true;   ///< 9: what tells that a step is complete tells its orders, too
  bool prune_together = true;     ///< 10: files are pruned when everyone has the newer step
  friend bool operator==(const Rules&, const Rules&) = default;
};

/// Below a link's longest message, with room for the rest of a Have.
inline constexpr std::size_t kMostClaimBytes = std::size_t{12} << 20U;
/// In this many ranks' recovery the claims to one step's images and their copies still fit.
inline constexpr int kMostRanks = 16'384;

/// Who the ranks are; never changes within a job. Made by make_config.
struct Config {
  int rank = 0;
  int world_size = 1;
  std::vector<std::vector<int>> holders;  ///< holders[r]: the ranks that hold r's replica
  /// lenders[r]: the ranks from whose own images r's replicas may borrow; empty: from nobody's.
  std::vector<std::vector<int>> lenders;
  Rules rules;
  std::uint64_t persist_every = 0;  ///< every n-th complete step goes to disk; 0: none by itself
  // Derived:
  std::vector<int> wards;      ///< the ranks whose replica this rank holds, ascending
  std::vector<int> borrowers;  ///< the ranks whose replicas may borrow from this one, ascending
  int parent = -1;             ///< -1 at the root, rank 0
  std::vector<int> children;   ///< at most two
  /// All it talks to, ascending: tree neighbours, holders and wards, lenders and borrowers.
  std::vector<int> peers;
  /// Claims of more bytes than this go up no further, the oldest images' first (Have::beyond).
  std::size_t most_claim_bytes = kMostClaimBytes;
};

/// r's holder is (r + W/2) mod W; nobody's where W = 1.
[[nodiscard]] MESHSTAGE_API std::vector<std::vector<int>> default_holders(int world_size);

/// Checks and derives. An empty `holders` means default_holders, empty `lenders` nobody.
/// \throws InvalidArgument naming the rank: out of range, holder of itself, named twice.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<const Config> make_config(
    int rank, int world_size, std::vector<std::vector<int>> holders = {}, Rules rules = {},
    std::vector<std::vector<int>> lenders = {}, std::uint64_t persist_every = 0);

}  // namespace meshstage::protocol
