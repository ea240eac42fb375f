#pragma once
#include <filesystem>
#include <memory>
#include <stop_token>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/control_links.hpp>
#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/comm/transport.hpp>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

namespace nccl_module {
struct Table;
}

struct NcclOptions {
  /// The device of the communicator, and the trainer's stream on it. An operation reads and writes
  /// its memory after everything that was issued on that stream when the operation was posted.
  TrainerStream trainer{{DeviceType::kCuda, 0}, kLegacyStream};
  /// The file libmeshstage_nccl.so, or the folder it is in. Empty: the module is sought.
  std::filesystem::path nccl_module;
};

/// A process group over NCCL, for memory of one device at each rank:
///
///   auto transport = make_nccl_transport(make_tcp_transport({.host = host}), {.trainer =
///   trainer}); auto group = transport->connect_group(request, store, Deadline::after(30s));
///   collectives::all_reduce(*group, gradient_bytes, Element::kBF16, ReduceOp::kAvg, deadline);
///   group->send(1, 7, tensor_bytes)->wait(deadline);
///
/// Spans are device memory; host memory is refused with InvalidArgument. When wait() or a
/// collective has returned, the operation is done on the device: the trainer may issue work on its
/// memory on any stream. barrier, broadcast, all_gather, all_reduce and reduce_scatter are NCCL's
/// own (NCCL chooses the order of additions; kI16 is refused). The other collectives need host
/// memory and are refused. A group made by split() only sends and receives.
///
/// `links` connect rank 0 with every rank and carry nothing else; the group owns them from then on.
/// Rank 0 puts all calls into one order (Sequencer): no call is issued before every rank that takes
/// part has posted it. So a late rank holds up no other calls, a transfer that timed out is still
/// pending, and messages are matched by tag and length.
///
/// Any of these ends the group at every rank: an abort by any rank, a lost link to any rank, an
/// error of NCCL, a collective's deadline. NCCL's operations end at once, wherever they wait. An
/// aborted stream reports success, so an operation counts as done only if its event was seen before
/// the abort. The process may make a new group afterwards.
///
/// NEVER use such a group while another NCCL communicator of the same device, for example the
/// trainer's own, has work pending on any rank. All ranks must issue operations on two
/// communicators in one order; if they do not, NCCL waits for ever.
///
/// Errors: those of Transport::connect_group; InvalidState with NCCL's own message if NCCL refuses.
/// Threads: one, `ms-nccl`, which makes all calls to NCCL for this group. close() ends it and
/// NCCL's own threads, and takes up to a second.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<ProcessGroup> connect_nccl_group(
    const nccl_module::Table& module, const NcclOptions& options,
    std::shared_ptr<ControlLinks> links, const ConnectRequest& request, Deadline deadline,
    std::stop_token stop = {});

/// Makes groups over NCCL; links, those of the groups included, are made by `host`. The first group
/// opens the NCCL module.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<Transport> make_nccl_transport(
    std::shared_ptr<Transport> host, NcclOptions options);

}  // namespace meshstage
