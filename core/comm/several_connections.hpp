#pragma once
#include <map>
#include <memory>
#include <stop_token>
#include <vector>

#include <meshstage/core/comm/transport.hpp>
#include <meshstage/core/os/available_processors.hpp>

/// One connection is as fast as the one processor that serves it. So a rank with free processors
/// has several connections to a peer for images, each with its own thread of the backend.
namespace meshstage {

/// No rank has more connections to one peer.
inline constexpr unsigned kMostConnections = 16;

/// The default number of connections to each data peer: 1 if the rank's share of the processors is
/// 4 or less, because the trainer and the copying threads need those; else one for each processor,
/// at most 8.
[[nodiscard]] MESHSTAGE_API unsigned default_connections(const AvailableProcessors& processors,
                                                         unsigned local_ranks = 1);

/// The same for recoveries, where the trainer waits: one for each processor of the share, at least
/// 2, at most 8.
[[nodiscard]] MESHSTAGE_API unsigned default_recovery_connections(
    const AvailableProcessors& processors, unsigned local_ranks = 1);

/// Joins several groups of the same ranks to one. The first group reaches every peer; each later
/// group reaches the same peers as the one before, or fewer. The result owns them. A lost
/// connection shows in the transfers that use it. Destroying an incomplete transfer aborts all
/// groups. wait_while_moving() ends when no byte has moved over any connection to the peer.
/// Threads: those of the groups.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<ProcessGroup> join_connections(
    std::vector<std::shared_ptr<ProcessGroup>> groups);

/// Transport::connect_group with `connections[peer]` connections to each peer, 1 to peers that it
/// does not name. Both ends must give the same number. For a request named "data" the later groups
/// are "data-1", "data-2" and so on.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<ProcessGroup> connect_several(
    Transport& transport, ConnectRequest request, const std::map<int, unsigned>& connections,
    Store& store, Deadline deadline, const std::stop_token& stop = {});

}  // namespace meshstage
