#pragma once
#include <cstdint>
#include <exception>
#include <functional>
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

/// One life of the group of ranks: from a successful form() to the first death.
/// Copyable handles; close() ends all of them.
struct MESHSTAGE_API Generation {
  std::uint64_t number = 0;  ///< Above 0.
  std::string claim;         ///< What its entry in the Store says.
  int rank = 0;
  int world_size = 1;
  std::shared_ptr<ControlLinks> links;     ///< To the tree's neighbours and the data peers.
  std::shared_ptr<ProcessGroup> data;      ///< To the data peers: images.
  std::shared_ptr<ProcessGroup> training;  ///< The trainer's collectives.
  /// The trainer's collectives on memory of its device; null unless
  /// MembershipOptions::device_transport is given.
  std::shared_ptr<ProcessGroup> device;
  /// Connects to ranks that are no data peers, each of which connects to this one: once in a
  /// generation. Throws what Transport does; nothing is left behind then. The caller closes both.
  std::function<Pairs(const std::vector<int>& peers, Deadline deadline, std::stop_token stop)>
      connect_pairs;

  /// Aborts the groups with `cause`, from any thread. The links stay.
  void abort(std::exception_ptr cause) const noexcept;
  /// Closes links and groups. Not from the links' thread.
  void close() const noexcept;
};

/// Who died, and what its witness saw; rank -1: nobody did, the generation broke by itself.
struct DeathCause {
  int rank = 0;
  std::string reason;
};
/// "rank 2 died: end of file", or the reason alone where no rank is to blame.
[[nodiscard]] std::string describe(const DeathCause& cause);

/// Where the Store keeps the first death of a generation, and how: "<rank> <reason>".
[[nodiscard]] std::string cause_key(const std::string& job, std::uint64_t generation);
[[nodiscard]] std::string encode_cause(const DeathCause& cause);
[[nodiscard]] DeathCause decode_cause(const std::string& text);

/// A claim that is newer than a generation: the generation is over.
struct NewerClaim {
  std::uint64_t number = 0;
  std::string owner;  ///< "the start \"torchrun-7\"", if another start took the job; else empty.
};

/// Whether anybody claimed a newer generation, as the Store's server has it now: first the claim of
/// `generation` itself is created, which a server alone can refuse, so that nothing that was
/// remembered of the Store on the way (a file system's cache) answers instead. A Store that was
/// emptied has that claim again afterwards. Throws what the Store throws.
[[nodiscard]] MESHSTAGE_API std::optional<NewerClaim> look_for_newer(Store& store,
                                                                     const std::string& job,
                                                                     const Generation& generation,
                                                                     Deadline deadline);

/// Whether that generation is the last one of its job: all ranks have called finish(), and nobody
/// had claimed a newer one before. The first to say so decides, whoever claims a newer one or calls
/// this; so a process that was stopped in finish(), while another start took its place, gets false.
/// Throws what the Store throws.
[[nodiscard]] MESHSTAGE_API bool claim_the_end(Store& store, const std::string& job,
                                               std::uint64_t generation, Deadline deadline);

}  // namespace meshstage
