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
/// more. `host` is the address to listen on and to be reached at. See Transport::connect_group for
/// what is thrown.
///
/// What Gloo cannot do, and what is done about it here:
/// - A wait that times out in Gloo ruins the whole context: Gloo's own timeouts are never reached;
///   a thread of the group interrupts waits at their deadlines, and the transfer stays pending.
/// - A connection that is reset before it was accepted, a message longer than the posted receive,
///   and bytes that are no message would end the process: here they end the connection
///   (guarded_pair_impl.hpp), and who waits for that peer gets PeerLost.
/// - A message shorter than the posted receive would count as complete: the length is part of what
///   is matched (with tag, job, generation and name), so unequal lengths never meet, and time out.
/// - A peer killed in mid transfer is not noticed: the control links notice, and abort.
/// - Gloo accepts whoever connects first: the two ends prove to each other, in a message of fixed
///   size, that they mean each other, before anything else is sent.
///
/// Threads: two of its own, Gloo's (reads and writes sockets) and `ms-deadlines`; both end in
/// close().
[[nodiscard]] MESHSTAGE_API std::shared_ptr<ProcessGroup> connect_gloo_group(
    const gloo_module::Table& module, const std::string& host, const ConnectRequest& request,
    Store& store, Deadline deadline, std::stop_token stop = {});

}  // namespace meshstage
