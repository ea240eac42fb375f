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
  /// The ranks this one exchanges images with: its holders and its wards. Each must name this one.
  std::vector<int> data_peers;
  /// How many connections for images this rank wants to have to each data peer. Of two ranks the
  /// smaller number counts. At most kMostConnections.
  unsigned connections = 1;
  /// What every rank must have been told alike, besides the world size: a line of text. A rank that
  /// was told otherwise is refused, with both texts; without this it would wait for links that
  /// nobody makes.
  std::string agreement;
  TrainingLinks training_links = TrainingLinks::kTree;
  /// Makes the group of the trainer's collectives on its device (make_nccl_transport), which
  /// reaches every rank. Null: there is none. All ranks have one or none of them has: the agreement
  /// says so.
  std::shared_ptr<Transport> device_transport;
  /// How the launcher calls this start of all ranks: the same on each, another at the next start,
  /// without spaces. Empty: nobody said, and this rank belongs to whatever start it fits.
  std::string launch;
  /// Take the job from another start whose ranks are alive, too.
  bool take_over = false;
  /// A newcomer takes a rank that answers it nothing for so long for lost. It decides how long a
  /// start waits beside processes that were stopped, or whose host it cannot see.
  std::chrono::milliseconds patience{15'000};
  /// Changes while this process's trainer does something; null: it always does. Called on the
  /// membership's thread.
  std::function<std::uint64_t()> sign_of_life;
  /// Hears once for what enter() waits, if it waits for longer than a second.
  std::function<void(const std::string&)> waits;
};

/// Forms generations over the Store: rules 6, 7 and 14 of the protocol. launch::admit() says which
/// start of the job owns it.
///
/// Keys, below `<job>/`:
/// - `run/0`: the number below all generations of this run, which the first rank to come draws
///   (core/generation)
/// - `run/<n>`: the number of the run that follows run n, where a rank has seen a generation above
///   n that this Store knows nothing of
/// - `incarnation/<rank>/<k>`: the k-th process that took this rank; the highest counts
/// - `claim/<n>`: made by whoever first wanted generation n: "`<world size> <launch> <last>
///   <agreement>`", `last` being the generation that this launch formed last, or 0
/// - `gen/<n>/place/<rank>`: "`<token> <boot> <pid namespace> <pid> <start time>`" of the process
///   that joined n as this rank
/// - `gen/<n>/outcome`: "formed" or "abandoned: " and why; the first to create it decides
/// - `gen/<n>/end`: "superseded" by whoever claims the next one, or "finished" by claim_the_end()
/// - `gen/<n>/since`: when n was formed, by the root's clock, for messages
/// - `gen/<n>/asked`: a newcomer's question whether the ranks of n live, another text each time
/// - `gen/<n>/alive/<rank>`: the answer, "`<answers> <signs of the trainer>`", counted
/// - `gen/<n>/left/<rank>`: its process ended in good order
/// - `gen/<n>/cause`: "`<rank> <reason>`", the first death in n
/// - `gen/<n>/net/...`: addresses
/// Numbers are written with twenty digits, so that they sort. A generation without an outcome is
/// *forming*. A rank that is admitted joins it if its place is free and its number is above all the
/// rank has seen; else it abandons it and goes to the next. Every rank connects, reports up the
/// control tree, and the root creates "formed": from then on, and not before, the generation
/// counts. Whoever sees a peer go while forming abandons it, so nobody waits for the dead.
/// A process whose rank was taken by a newer one, or whose job by another launch, is *fenced*: it
/// can form nothing more.
///
/// Threads: enter() and form() one at a time; the others from any. One of its own from the first
/// place on, which answers newcomers.
class MESHSTAGE_API Membership {
 public:
  /// Throws InvalidArgument on senseless options. Does not call the Store.
  explicit Membership(MembershipOptions options);
  Membership(const Membership&) = delete;
  Membership& operator=(const Membership&) = delete;
  ~Membership();

  /// Asks the Store for this rank's place in the job. Returns the generation in whose name this
  /// process may take the rank's vault: above `highest_seen`, and above every generation in whose
  /// name another process took it. form() goes on from there. Waits, at most until the deadline,
  /// while it is not clear whether a job that another start owns is alive. Throws InvalidState if
  /// that job is healthy (who runs it, since when, what to do) or if its ranks were told other
  /// options, Timeout, and what the Store throws. Whoever gets an error has touched nothing but
  /// the Store.
  std::uint64_t enter(std::uint64_t highest_seen, Deadline deadline);

  /// Collective: waits until all ranks are in one generation, numbered above `highest_seen` (the
  /// highest number in this rank's vault and files) and above every one in the Store. Close the
  /// generation before, first. An attempt that fails (a peer's address cannot be reached, say) is
  /// followed by another after a pause, from 10 ms growing to 1 s, and leaves no address in the
  /// Store. Throws what enter() throws; Timeout names the ranks that did not come and why the last
  /// attempt failed; Fenced; InvalidState if a generation above kLastGeneration is in the
  /// Store or was seen.
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
  /// Sends whoever waits in a generation below `number` that has no outcome on to it.
  void abandon_older(std::uint64_t number, Deadline deadline);
  /// One look at the newest claim, and what launch::admit() says to it. A generation in which this
  /// rank has a place now; nothing if it is to look again.
  [[nodiscard]] std::optional<std::uint64_t> join_newest(std::uint64_t& seen, Deadline deadline);
  /// The number that follows the newest claim, or one of a new run where a rank has seen a higher.
  [[nodiscard]] std::uint64_t next_number(std::uint64_t newest, std::uint64_t seen,
                                          Deadline deadline);
  /// Claims the next generation, above `seen` too. An undecided `newest` is abandoned.
  void claim_next(std::uint64_t newest, std::uint64_t seen, const detail::Claim& claim,
                  const std::string& why, Deadline deadline);
  [[nodiscard]] std::optional<std::uint64_t> take_place(std::uint64_t number,
                                                        const detail::Claim& claim,
                                                        std::uint64_t& seen, Deadline deadline);
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
