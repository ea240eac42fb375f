#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/generation.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/comm/transport.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// Which peers the training group reaches.
enum class TrainingLinks : std::uint8_t {
  kTree,  ///< The control tree's neighbours: enough for barrier, broadcast, all_reduce, all_gather.
  kAll,   ///< Every rank: also reduce_scatter and all_to_all. Costs a connection for each pair.
};

struct MembershipOptions {
  std::string job;  ///< Keys in the Store begin with it. Not empty.
  int rank = 0;
  int world_size = 1;
  std::shared_ptr<Store> store;
  std::shared_ptr<Transport> transport;
  /// The ranks this one exchanges images with: its holders and its wards. Each must name this one.
  std::vector<int> data_peers;
  /// What every rank must have been told alike, besides the world size: a line of text. A rank that
  /// was told otherwise is refused, with both texts; without this it would wait for links that
  /// nobody makes.
  std::string agreement;
  TrainingLinks training_links = TrainingLinks::kTree;
};

/// Forms generations over the Store: rule 6 and rule 7 of the protocol.
///
/// Keys, below `<job>/`:
/// - `incarnation/<rank>/<k>`: the k-th process that took this rank; the highest counts
/// - `claim/<n>`: made by whoever first wanted generation n; the world size, and behind a space
///   the agreement
/// - `gen/<n>/place/<rank>`: the incarnation of the process that joined n as this rank
/// - `gen/<n>/outcome`: "formed" or "abandoned: " and why; the first to create it decides
/// - `gen/<n>/cause`: "`<rank> <reason>`", the first death in n
/// - `gen/<n>/net/...`: addresses
/// Numbers are written with twenty digits, so that they sort. A generation without an outcome is
/// *forming*. A rank joins it if its place is free and its number is above all the rank has seen;
/// else it abandons it and goes to the next. Every rank connects, reports up the control tree, and
/// the root creates "formed": from then on, and not before, the generation counts. Whoever sees a
/// peer go while forming abandons it, so nobody waits for the dead.
/// A process whose rank was taken by a newer one is *fenced*: it can form nothing more.
///
/// Threads: form() one at a time; the others from any. No thread of its own outside form().
class MESHSTAGE_API Membership {
 public:
  /// The highest number that a generation may have: nobody forms so many. A higher one comes from a
  /// file or an entry that no rank of ours has written.
  static constexpr std::uint64_t kLastGeneration = std::uint64_t{1} << 62U;

  /// Registers this process as the newest of its rank. Throws InvalidArgument on senseless options,
  /// and what the Store throws, Timeout at the deadline included.
  explicit Membership(MembershipOptions options, Deadline deadline = Deadline::never());
  Membership(const Membership&) = delete;
  Membership& operator=(const Membership&) = delete;
  ~Membership();

  /// Collective: waits until all ranks are in one generation, numbered above `highest_seen` (the
  /// highest number in this rank's vault and files) and above every one in the Store. Close the
  /// generation before, first. An attempt that fails (a peer's address cannot be reached, say) is
  /// followed by another after a pause, from 10 ms growing to 1 s, and leaves no address in the
  /// Store. Throws Timeout naming the ranks that did not come and why the last attempt failed,
  /// InvalidState if fenced, if a rank came with another world size or agreement, or if a
  /// generation above kLastGeneration is in the Store or was seen.
  [[nodiscard]] Generation form(std::uint64_t highest_seen, Deadline deadline);

  /// The ranks that have no place yet in the newest generation: while it is being formed, those
  /// that form() waits for. For a message; throws what the Store throws.
  [[nodiscard]] std::vector<int> absent(Deadline deadline);

  /// Writes who died, before anything is closed. The first cause stays; returns the one that is
  /// there.
  DeathCause declare_death(std::uint64_t generation, int rank, const std::string& reason,
                           Deadline deadline = Deadline::never());
  [[nodiscard]] std::optional<DeathCause> cause_of(std::uint64_t generation,
                                                   Deadline deadline = Deadline::never());
  /// True once a newer generation was formed, or a newer process took this rank.
  [[nodiscard]] bool fenced(std::uint64_t generation, Deadline deadline = Deadline::never());

  /// 1 for the first process of this rank in this Store, then ascending.
  [[nodiscard]] std::uint64_t incarnation() const noexcept { return incarnation_; }

 private:
  struct Forming;
  [[nodiscard]] std::string key(std::uint64_t generation, const std::string& what) const;
  [[nodiscard]] std::string claim_text() const;
  [[nodiscard]] std::string claim_key(std::uint64_t generation) const;
  [[nodiscard]] bool is_replaced(Deadline deadline);
  void check_not_replaced(Deadline deadline);
  [[nodiscard]] std::uint64_t newest_generation(Deadline deadline);
  /// Sends whoever waits in a generation below `number` that has no outcome on to it.
  void abandon_older(std::uint64_t number, Deadline deadline);
  [[nodiscard]] std::optional<std::uint64_t> join_newest(std::uint64_t& seen, Deadline deadline);
  [[nodiscard]] std::optional<Generation> connect(std::uint64_t number, Forming& forming);
  /// Throws Timeout with the ranks that have no place in the generation; returns if all have.
  void throw_missing(std::uint64_t number, const Forming& forming);
  void remove_superseded(std::uint64_t number, Deadline deadline);

  MembershipOptions options_;
  std::uint64_t incarnation_ = 0;
};

}  // namespace meshstage
