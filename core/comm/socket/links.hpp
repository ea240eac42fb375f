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

/// Control links over TCP: one connection to each of `request.peers`, none else, and one thread
/// (epoll) for all of them. `host` is the address or name to listen on. Addresses go through the
/// Store; both ends prove that they mean the same job, generation, name and world size, and each
/// other. Descriptors are close-on-exec and never block; no SIGPIPE.
/// A peer's death is noticed by end of file at once. Where a child that it forked holds its sockets
/// open no end of file comes: a linked peer on the same host (and in the same pid namespace)
/// watches the process itself and notices within a quarter of a second; others, and a stopped
/// process or a vanished host, by silence. Frames carry numbers and digests: what is changed, lost,
/// repeated or displaced on the way ends the link as kProtocol. The wire format stands in
/// frame_impl.hpp. See Transport::connect_links for what is thrown.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<ControlLinks> connect_socket_links(
    const std::string& host, const LinkOptions& options, const ConnectRequest& request,
    Store& store, Deadline deadline, std::stop_token stop = {});

}  // namespace meshstage
