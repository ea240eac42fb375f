#pragma once
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/control_links.hpp>
#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// Links and a group between some pairs of ranks of a generation.
struct Pairs {
  std::shared_ptr<ControlLinks> links;
  std::shared_ptr<ProcessGroup> data;
};

/// The numbers of connections for images on which two ranks agreed.
struct Connections {
  unsigned beside_trainer = 1;
  unsigned in_recovery = 1;  ///< At least beside_trainer: so many there are.
};

/// One life of the group of ranks: from a successful form() to the first death.
/// Copyable handles; close() ends all of them.
struct MESHSTAGE_API Generation {
  std::uint64_t number = 0;  ///< Above 0.
  std::string claim;         ///< The text of its claim in the Store.
  int rank = 0;
  int world_size = 1;
  std::shared_ptr<ControlLinks> links;     ///< To the tree's neighbours and the data peers.
  std::shared_ptr<ProcessGroup> data;      ///< To the data peers: images.
  std::map<int, Connections> connections;  ///< Of `data`, by data peer.
  std::shared_ptr<ProcessGroup> training;  ///< The trainer's collectives.
  /// The trainer's collectives on memory of its device; null unless
  /// MembershipOptions::device_transport is given.
  std::shared_ptr<ProcessGroup> device;
  using Connect =
      std::function<Pairs(const std::vector<int>& peers, Deadline deadline, std::stop_token stop)>;
  /// Connects to ranks that are not data peers; each of them must connect to this rank, too. Once
  /// in a generation. Throws what Transport throws, and leaves nothing behind then. The caller
  /// closes links and group.
  Connect connect_pairs;
  /// The same for images of another number of ranks, or of another cut: once in a generation, too,
  /// with addresses of its own in the Store, so that nobody takes the former ones for these.
  Connect connect_old_pairs;

  /// Aborts the groups with `cause`, from any thread. The links stay.
  void abort(std::exception_ptr cause) const noexcept;
  /// Closes links and groups. Not from the links' thread.
  void close() const noexcept;
};

/// The rank that died, and what the witness saw. Rank -1: the generation broke without a death.
struct DeathCause {
  int rank = 0;
  std::string reason;
};
/// "rank 2 died: end of file", or the reason alone where no rank is to blame.
[[nodiscard]] std::string describe(const DeathCause& cause);

/// The Store's key for the first death of a generation, and its value: "<rank> <reason>".
[[nodiscard]] std::string cause_key(const std::string& job, std::uint64_t generation);
[[nodiscard]] std::string encode_cause(const DeathCause& cause);
[[nodiscard]] DeathCause decode_cause(const std::string& text);

/// A claim that is newer than a generation: the generation is over.
struct NewerClaim {
  std::uint64_t number = 0;
  std::string owner;  ///< "the start \"torchrun-7\"", if another start took the job; else empty.
};

/// Returns the newest claim if it is newer than `generation`. First it tries to create the claim of
/// `generation` again. Only the server itself can refuse that, so the refusal proves that it was
/// asked, and not a file system's cache. In a Store that was emptied this restores the claim.
/// Throws what the Store throws.
[[nodiscard]] MESHSTAGE_API std::optional<NewerClaim> look_for_newer(Store& store,
                                                                     const std::string& job,
                                                                     const Generation& generation,
                                                                     Deadline deadline);

/// Notes in the Store that the job finished in `generation`. Call it when all ranks have called
/// finish(). True if the note is there; false if a newer generation was claimed before, for example
/// while this process was stopped in finish(). One entry decides: the first write wins. Throws what
/// the Store throws.
[[nodiscard]] MESHSTAGE_API bool claim_the_end(Store& store, const std::string& job,
                                               std::uint64_t generation, Deadline deadline);

}  // namespace meshstage
