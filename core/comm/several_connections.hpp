#pragma once
#include <map>
#include <memory>
#include <stop_token>
#include <vector>

#include <meshstage/core/comm/transport.hpp>
#include <meshstage/core/os/available_processors.hpp>

/// One connection carries at most what one processor moves. So ranks that have processors to spare
/// have several connections to a peer for images, each with its own thread of the backend.
namespace meshstage {

/// No rank has more connections to one peer.
inline constexpr unsigned kMostConnections = 16;

/// How many connections a rank wants to each of its data peers, by default: 1 where its share of
/// the processors is 4 or less, because the trainer and the copying threads need those; else one a
/// processor, at most 8.
[[nodiscard]] MESHSTAGE_API unsigned default_connections(const AvailableProcessors& processors,
                                                         unsigned local_ranks = 1);

/// Makes one group of several, which connect the same ranks: the first one reaches every peer, and
/// the peers of each later one are among those of the one before. The result owns them. A loss of
/// one connection is found by what uses it; a transfer that is given up aborts all of them. A wait
/// for moving bytes ends when none has moved over any connection to the peer.
/// Threads: those of the groups.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<ProcessGroup> join_connections(
    std::vector<std::shared_ptr<ProcessGroup>> groups);

/// Transport::connect_group with as many connections to each peer as `connections` says, which the
/// two ends have agreed on; 1 to peers that it does not name. The later groups are called "data-1",
/// "data-2" and so on where the request's name is "data".
[[nodiscard]] MESHSTAGE_API std::shared_ptr<ProcessGroup> connect_several(
    Transport& transport, ConnectRequest request, const std::map<int, unsigned>& connections,
    Store& store, Deadline deadline, const std::stop_token& stop = {});

}  // namespace meshstage
