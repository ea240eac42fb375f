#pragma once
#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/control_links.hpp>
#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/comm/store.hpp>

namespace meshstage {

/// The ranks that connect, and the place in the Store where they find each other. Two ends connect
/// only if job, generation, name and world size are the same and each expects the other's rank.
struct ConnectRequest {
  std::string job;
  std::uint64_t generation = 0;
  std::string
      name;  ///< Tells several links or groups of one generation apart: "links", "data", ...
  int rank = 0;
  int world_size = 1;
  std::vector<int> peers;    ///< Ranks to connect to; each must name this rank, too. May be empty.
  std::string store_prefix;  ///< Addresses are exchanged below it: `<store_prefix>/<name>/<rank>`.
};

/// Makes links and groups. Each backend has its own; Membership and the rooms above work with any.
/// Both calls block until every peer is connected. They throw Timeout naming the peers that did not
/// come, PeerLost if a peer went away meanwhile, and Cancelled once a stop is requested. They throw
/// InvalidState if a peer refused (the message says which of job, generation, rank, ... differs),
/// and InvalidArgument for peers that are out of range, repeated, or this rank itself. After an
/// error no connection is left. Threads: any.
class MESHSTAGE_API Transport {
 public:
  virtual ~Transport() = default;
  [[nodiscard]] virtual std::shared_ptr<ControlLinks> connect_links(const ConnectRequest& request,
                                                                    Store& store, Deadline deadline,
                                                                    std::stop_token stop = {}) = 0;
  [[nodiscard]] virtual std::shared_ptr<ProcessGroup> connect_group(const ConnectRequest& request,
                                                                    Store& store, Deadline deadline,
                                                                    std::stop_token stop = {}) = 0;
};

/// Throws InvalidArgument unless rank and peers are within the world size and each peer is another
/// rank, named once.
MESHSTAGE_API void check_request(const ConnectRequest& request);

}  // namespace meshstage
