#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include <meshstage/core/error/export.hpp>

/// The ranks, their holders and lenders, and the rules that are on.
namespace meshstage::protocol {

/// Each protocol rule as a switch, for the explorer only: production leaves all of them on. With
/// any of them off, the explorer finds a run that loses or mixes a step (tests/protocol).
struct Rules {
  bool generations_apart = true;    ///< 1: messages and images of other generations stay out
  bool verify_claims = true;        ///< 5a: claim only what was verified just now
  bool stage_beside_base = true;    ///< 2: a new step goes to the slot that does not hold its base
  bool vote_needs_replicas = true;  ///< 2: yes only when the wards' replicas are sealed, too
  bool vote_needs_lent = true;      ///< 2: yes only when the lent bytes equal the borrowed ones
  bool promise = true;  ///< 3: nothing is staged before the outcome of the last is known
  bool receiver_knows_outcome =
      true;                   ///< 3: an offer tells its receiver the outcome of the round before
  bool all_must_vote = true;  ///< 4: one rank without a yes is enough to keep a step incomplete
  bool note_first = true;     ///< 5: the Store's note precedes the first complete
  bool look = true;           ///< 12: the root asks the Store after the last yes, then decides
  /// 5b: nothing is chosen unless it is newer than all claims left out
  bool beyond_unknown = true;
  bool ask_beyond = true;      ///< 5b: the root asks for claims left out until a step is covered
  bool newest_covered = true;  ///< 5b: the newest covered step, not the newest marked complete
  bool old_if_newer = true;    ///< 5b: an old job's step is taken only if nothing is as new
  bool publish_old = true;     ///< 5b: an old job's newest step in memory is put on disk first
  bool prove_old = true;       ///< 5b: each file of an old job's step was proven by some rank
  bool look_old = true;        ///< 5b: what no rank claimed of an old step the root proves
  bool old_anywhere = true;    ///< 5b: a file of an old job counts on whichever disk it lies
  bool count_kept = true;      ///< 5b: an old job's image that is kept in memory counts like a file
  bool keep_old = true;        ///< 5b: it stays until a step of this number is complete, ...
  bool keep_old_replicas = true;  ///< 5b: ... and so do its replicas
  bool whole_claims = true;       ///< 5b: a replica counts only with what it borrows
  bool found_anywhere = true;     ///< 14: an image counts wherever it lies, in whosever vault
  bool restore_holders = true;    ///< 5c: redundancy is whole again at owner and holder
  bool fetch_beside_base = true;  ///< 5c: a fetch spares the chosen step's base
  bool lent_stays_own = true;     ///< 5c: an own image from which others borrow becomes no replica
  bool agree_first = true;        ///< 5d: everyone is ready before anyone restores or stages
  bool structure_first = true;    ///< 5e: one mismatch stops all
  bool publish_cut = true;        ///< 5e: a step that is cut anew is put on disk first
  bool quarantine = true;         ///< 8: a broken generation's transfers write nowhere any more
  bool finish_together = true;    ///< 9: vaults are removed when everyone finishes
  bool finish_is_a_no = true;     ///< 9: a rank that finishes votes no on steps it has not staged
  bool orders_with_base = true;  ///< 9: a message that tells that a step is complete has its orders
  bool names_itself = true;      ///< 15: a rank for which the others wait names itself
  bool waits_for_disk = true;    ///< 15: the others wait for a rank that reads while its disk gives
  bool prune_together = true;    ///< 10: files are pruned when everyone has the newer step
  friend bool operator==(const Rules&, const Rules&) = default;
};

/// Less than a link's longest message, which leaves room for the rest of a Have.
inline constexpr std::size_t kMostClaimBytes = std::size_t{12} << 20U;
/// The largest world size. The claims to one step's images and copies of this many ranks fit a
/// Have.
inline constexpr int kMostRanks = 16'384;

/// The ranks of a job and their roles; never changes within a job. Made by make_config.
struct Config {
  int rank = 0;
  int world_size = 1;
  std::vector<std::vector<int>> holders;  ///< holders[r]: the ranks that hold r's replica
  /// lenders[r]: the ranks from whose own images r's replicas may borrow; empty: from none.
  std::vector<std::vector<int>> lenders;
  Rules rules;
  std::uint64_t persist_every = 0;  ///< every n-th complete step goes to disk; 0: only on wish
  /// the job may go on from a step of another number of ranks, or of another cut
  bool any_world = false;
  // Derived:
  std::vector<int> wards;      ///< the ranks whose replica this rank holds, ascending
  std::vector<int> borrowers;  ///< the ranks whose replicas may borrow from this one, ascending
  int parent = -1;             ///< -1 at the root, rank 0
  std::vector<int> children;   ///< at most two
  /// All ranks that this rank exchanges messages with, ascending: tree neighbours, holders and
  /// wards, lenders and borrowers.
  std::vector<int> peers;
  /// The ranks with which this rank exchanges images, ascending: its holders, its wards, the other
  /// holders of its wards (which restore a holder when the owner is gone), its lenders and its
  /// borrowers.
  std::vector<int> data_peers;
  /// The most bytes of claims in a Have; the oldest images' claims are left out first
  /// (Have::beyond), and the root asks for them (AskDisk::up_to).
  std::size_t most_claim_bytes = kMostClaimBytes;

  /// Whether `holder` holds replicas of `owner`. False for an owner that is no rank of the job.
  [[nodiscard]] bool holds(int holder, int owner) const;
};

/// The holder of rank r is (r + W/2) mod W; no rank has one where W = 1.
[[nodiscard]] MESHSTAGE_API std::vector<std::vector<int>> default_holders(int world_size);

/// Checks its arguments and derives the rest. Empty `holders` mean default_holders, empty `lenders`
/// that no rank borrows.
/// \throws InvalidArgument naming a rank that is out of range, its own holder, or named twice; also
/// if the claims to one step may be more than a message has room for.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<const Config> make_config(
    int rank, int world_size, std::vector<std::vector<int>> holders = {}, Rules rules = {},
    std::vector<std::vector<int>> lenders = {}, std::uint64_t persist_every = 0,
    bool any_world = false);

}  // namespace meshstage::protocol
