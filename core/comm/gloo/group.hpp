#pragma once
#include <memory>
#include <stop_token>
#include <string>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/comm/transport.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

namespace gloo_module {
struct Table;
}

/// A process group over Gloo's TCP transport, with a connection to each of `request.peers` and no
/// more. `host` is the address to listen on and to be reached at. Transport::connect_group lists
/// the errors.
///
/// Gloo has these limits, and this group makes up for each of them:
/// - A wait that times out in Gloo ruins the whole context. So a thread of the group interrupts
/// waits at their deadlines, before Gloo's own timeouts; the transfer stays pending.
/// - A connection that is reset before it was accepted, a message longer than the posted receive,
/// and bytes that are no message would end the process. Here they end the connection
/// (guarded_pair_impl.hpp), and a thread that waits for that peer gets PeerLost.
/// - A message shorter than the posted receive would count as complete: here send and receive are
/// matched by their length too (with tag, job, generation and name), so unequal lengths never meet,
/// and time out.
/// - Gloo does not notice that a peer was killed in mid transfer: the control links report the
/// death, and their owner aborts the group.
/// - Gloo accepts the first connection, whoever makes it. Here the two ends first exchange a
/// message of fixed size that proves their ranks and the group.
///
/// Threads: the group has two, Gloo's (reads and writes sockets) and `ms-deadlines`; both end in
/// close().
[[nodiscard]] MESHSTAGE_API std::shared_ptr<ProcessGroup> connect_gloo_group(
    const gloo_module::Table& module, const std::string& host, const ConnectRequest& request,
    Store& store, Deadline deadline, std::stop_token stop = {});

}  // namespace meshstage
