#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/origin.hpp>
#include <meshstage/core/comm/generation.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/comm/transport.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/core/generation/number.hpp>

namespace meshstage {

namespace detail {
class SignsOfLife;
class Newcomer;
struct Claim;
}  // namespace detail

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
  /// The ranks with which this rank exchanges images: its holders and wards. Each must name this
  /// rank, too.
  std::vector<int> data_peers;
  /// The numbers of connections for images that this rank wants to each data peer, while the
  /// trainer works and in a recovery. Of each the smaller number of the two ranks counts. At most
  /// kMostConnections. A recovery has at least those of training, and so many are made.
  unsigned connections = 1;
  unsigned recovery_connections = 1;
  /// The options that must be equal on all ranks, as one line of text. A rank with another text is
  /// refused, and the error shows both texts; otherwise it would wait for links that no rank makes.
  std::string agreement;
  TrainingLinks training_links = TrainingLinks::kTree;
  /// Makes the group for the trainer's collectives on its device (make_nccl_transport), which
  /// reaches every rank. Null: there is none. Either all ranks have one or none: put that into
  /// `agreement`.
  std::shared_ptr<Transport> device_transport;
  /// The launcher's name for this start of all ranks: the same on each, another at the next start,
  /// without spaces. Empty: this rank belongs to any start that it fits.
  std::string launch;
  /// Take the job even from another start whose ranks are alive.
  bool take_over = false;
  /// A newcomer counts a rank as lost that does not answer for this long. A start waits so long
  /// beside processes that were stopped, or whose host it cannot see.
  std::chrono::milliseconds patience{15'000};
  /// A number that changes while this process's trainer does something. Null: the trainer counts as
  /// alive always. Called on the membership's thread.
  std::function<std::uint64_t()> sign_of_life;
  /// Called once, with the reason, if enter() waits for longer than a second.
  std::function<void(const std::string&)> waits;
  /// form() calls it after an attempt that failed because a rank could not be reached or could not
  /// wait for the outcome: with the attempt's number and that reason, before it tries again. Not
  /// called for the reason of the attempt before, and at most ten times in one form().
  std::function<void(const std::string&)> failed;
};

/// Forms generations over the Store: rules 6, 7 and 11 of the protocol. launch::admit() says which
/// start of the job owns it.
///
/// Keys, below `<job>/`:
/// - `run/0`: the number below all generations of this run, drawn by the first rank that comes
///   (core/generation)
/// - `run/<n>`: the number of the run that follows run n. A rank draws it that has seen a
///   generation above n which this Store does not know.
/// - `incarnation/<rank>/<k>`: the k-th process that took this rank; the highest counts
/// - `claim/<n>`: made by the first rank that wanted generation n: "`<world size> <launch> <last>
///   <agreement>`", `last` being the generation that this launch formed last, or 0
/// - `gen/<n>/place/<rank>`: "`<token> <boot> <pid namespace> <pid> <start time>`" of the process
///   that joined n as this rank
/// - `gen/<n>/outcome`: "formed" or "abandoned: " and why; the first creation decides
/// - `gen/<n>/end`: "superseded", from the rank that claims the next one, or "finished", from
///   claim_the_end()
/// - `gen/<n>/since`: when n was formed, by the root's clock, for messages
/// - `gen/<n>/asked`: a newcomer's question whether the ranks of n live; each question has another
///   text
/// - `gen/<n>/alive/<rank>`: the rank's answer: "`<number of answers> <sign_of_life()>`"
/// - `gen/<n>/left/<rank>`: the rank's process ended in good order
/// - `gen/<n>/cause`: "`<rank> <reason>`", the first death in n
/// - `gen/<n>/net/...`: addresses
/// Numbers are written with twenty digits, so that they sort. A generation without an outcome is
/// *forming*. An admitted rank joins it if the rank's place is free and its number is above all
/// that the rank has seen; else the rank abandons it and claims the next. Every rank connects and
/// reports up the control tree; then the root creates "formed", and only from then on the
/// generation counts. A rank that sees a peer go while forming abandons the generation, so no rank
/// waits for the dead. A process is *fenced* once a newer process has its rank or another launch
/// has the job: it can form no generation any more.
///
/// Threads: call enter() and form() one at a time, the others from any thread. From its first place
/// on a Membership has one thread, which answers newcomers.
class MESHSTAGE_API Membership {
 public:
  /// Throws InvalidArgument on senseless options. Does not call the Store.
  explicit Membership(MembershipOptions options);
  Membership(const Membership&) = delete;
  Membership& operator=(const Membership&) = delete;
  ~Membership();

  /// Asks the Store for this rank's place in the job. Returns the generation in whose name this
  /// process may take the rank's vault: above `highest_seen`, and above every generation in whose
  /// name another process took the vault. form() goes on from there. While another start owns the
  /// job, and it is not clear whether that start is alive, enter() waits, at most until the
  /// deadline. Throws InvalidState if that start is healthy (the error says its name, since when it
  /// runs, and what to do) or if its ranks have other options; Timeout; and what the Store throws.
  /// After an error nothing but the Store was touched.
  std::uint64_t enter(std::uint64_t highest_seen, Deadline deadline);

  /// Collective: waits until all ranks are in one generation, numbered above `highest_seen` (the
  /// highest number in this rank's vault and files) and above every one in the Store. Close the
  /// previous generation first. After an attempt that fails (a peer cannot be reached, say) form()
  /// tries again after a pause, which grows from 10 ms to 1 s. A failed attempt leaves no address
  /// in the Store. Throws what enter() throws; Timeout, which names the ranks that did not come and
  /// why the last attempt failed; Fenced; InvalidState if a generation above kLastGeneration is in
  /// the Store or was seen.
  [[nodiscard]] Generation form(std::uint64_t highest_seen, Deadline deadline);

  /// The ranks that have no place yet in the newest generation. During form() these are the ranks
  /// that it waits for, to name them in a message. Throws what the Store throws.
  [[nodiscard]] std::vector<int> absent(Deadline deadline);

  /// Writes the cause of death into the Store. Call it before anything is closed. The first cause
  /// stays; returns that one.
  DeathCause declare_death(std::uint64_t generation, int rank, const std::string& reason,
                           Deadline deadline = Deadline::never());
  [[nodiscard]] std::optional<DeathCause> cause_of(std::uint64_t generation,
                                                   Deadline deadline = Deadline::never());
  /// True once a newer generation was formed, or a newer process took this rank.
  [[nodiscard]] bool fenced(std::uint64_t generation, Deadline deadline = Deadline::never());
  /// Throws Fenced if a newer process took this rank, and what the Store throws.
  void check_not_replaced(Deadline deadline);

  /// 1 for the first process of this rank in this Store, then ascending; 0 before it has a place.
  [[nodiscard]] std::uint64_t incarnation() const noexcept { return incarnation_; }

 private:
  struct Forming;
  [[nodiscard]] std::string key(std::uint64_t generation, const std::string& what) const;
  [[nodiscard]] std::string claim_key(std::uint64_t generation) const;
  [[nodiscard]] bool is_replaced(Deadline deadline);
  [[nodiscard]] std::uint64_t newest_generation(Deadline deadline);
  /// Abandons every undecided generation below `number`, so that ranks that wait there come to
  /// `number`.
  void abandon_older(std::uint64_t number, Deadline deadline);
  /// Looks at the newest claim once and does what launch::admit() says. Returns the generation in
  /// which this rank has a place now; nothing if the caller must look again.
  [[nodiscard]] std::optional<std::uint64_t> join_newest(std::uint64_t& seen, Deadline deadline);
  /// The number after the newest claim; the first one of a new run if this rank has seen a higher
  /// one.
  [[nodiscard]] std::uint64_t next_number(std::uint64_t newest, std::uint64_t seen,
                                          Deadline deadline);
  /// Claims the next generation, above `seen` too. An undecided `newest` is abandoned.
  void claim_next(std::uint64_t newest, std::uint64_t seen, const detail::Claim& claim,
                  const std::string& why, Deadline deadline);
  [[nodiscard]] std::optional<std::uint64_t> take_place(std::uint64_t number,
                                                        const detail::Claim& claim,
                                                        std::uint64_t& seen, Deadline deadline);
  /// form(), whose Timeout does not say yet which ranks did not come.
  [[nodiscard]] Generation form_in_attempts(std::uint64_t seen, Forming& forming);
  [[nodiscard]] std::optional<Generation> connect(std::uint64_t number, Forming& forming);
  /// Throws Timeout with the ranks that have no place in the generation; returns if all have.
  void throw_missing(std::uint64_t number, const Forming& forming);
  void remove_superseded(std::uint64_t number, Deadline deadline);

  const MembershipOptions options_;
  const ProcessOrigin origin_;  // a forked child's copy has left nothing
  std::uint64_t incarnation_ = 0;
  std::string launch_;                    // whose generation this process joined last,
  std::string claim_;                     // ... and its claim's text
  bool member_ = false;                   // it was in a generation of that launch
  std::optional<std::uint64_t> entered_;  // by enter(), for the next form()
  std::uint64_t placed_ = 0;              // the newest generation in which it has a place
  bool formed_ = false;                   // ... and whether that was formed
  std::unique_ptr<detail::Newcomer> newcomer_;
  std::unique_ptr<detail::SignsOfLife> signs_;
};

}  // namespace meshstage
