#pragma once
#include <memory>
#include <stop_token>
#include <string>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/control_links.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/comm/transport.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// Control links over TCP: one connection to each of `request.peers` and no other, and one thread
/// (epoll) for all of them. `host` is the address or name to listen on. Ranks exchange addresses
/// through the Store. Both ends prove their ranks and that job, generation, name and world size are
/// the same. Descriptors are close-on-exec and never block; no SIGPIPE. A peer's death shows at
/// once as end of file. If a forked child holds the dead peer's sockets open, no end of file comes.
/// Then ranks on the same host (and in the same pid namespace) notice the death within a quarter of
/// a second, because they watch the process itself. Ranks on other hosts notice it by silence. A
/// stopped process and a vanished host show by silence everywhere. Frames carry numbers and
/// digests: a frame that is changed, lost, repeated or displaced on its way ends the link as
/// kProtocol. frame_impl.hpp has the wire format. Transport::connect_links lists the errors.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<ControlLinks> connect_socket_links(
    const std::string& host, const LinkOptions& options, const ConnectRequest& request,
    Store& store, Deadline deadline, std::stop_token stop = {});

}  // namespace meshstage
