#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

namespace collectives {
class Own;
}

/// One posted send or receive.
///
/// The memory given to send()/receive() must stay valid, and a receive target untouched, until
/// wait() has returned normally, this object is destroyed, or the group is closed. The destructor
/// returns when the memory is no longer in use. The destructor of an incomplete transfer also
/// aborts the group with Cancelled, because part of the message may be on the wire.
class MESHSTAGE_API Transfer {
 public:
  virtual ~Transfer() = default;
  /// Returns when the transfer is complete: a receive target holds all bytes; a source may be
  /// changed (the peer need not have its bytes yet). Returns at once if called again.
  /// Throws the cause given to abort(), or one of these errors. PeerLost with the peer's rank: the
  /// backend itself noticed the peer's death. PeerSilent with the peer's rank, at the deadline: the
  /// transfer is still pending, and wait() may be called again. Cancelled: the group was closed.
  /// CorruptData: the peer's message has another length (a backend that cannot see this waits until
  /// the deadline instead).
  /// Threads: one at a time for one transfer.
  virtual void wait(Deadline deadline) = 0;
  /// Waits like wait(), but returns false at the deadline: no error, and the transfer is still
  /// pending. Throws what wait() throws for any other reason. Threads: as wait().
  [[nodiscard]] virtual bool done_by(Deadline deadline);
  /// Waits as long as bytes of any transfer move between the two ranks, in either direction. Throws
  /// PeerSilent when none has moved for `silence`, else what wait() throws. So a slow wire is not
  /// taken for a dead one: one packet in `silence` is enough. A backend that cannot see bytes move
  /// (this default) waits for `silence` in all.
  virtual void wait_while_moving(std::chrono::milliseconds silence) {
    wait(Deadline::after(silence));
  }
};

/// Ranks 0..size-1 that send bytes to each other. The collectives (collectives.hpp) use only these
/// calls. Messages with the same tag between two ranks arrive in the order in which they were sent;
/// both ranks must post the same length. An empty message completes at once and synchronises
/// nothing. The group buffers nothing: a send may stay incomplete until the peer posts its receive.
///
/// Which peers a group reaches is fixed when the group is made. A backend need not notice that a
/// peer died (Gloo does not in mid transfer): the owner of the control links calls abort().
///
/// Threads: any thread may call send, receive, abort and close.
class MESHSTAGE_API ProcessGroup : public std::enable_shared_from_this<ProcessGroup> {
 public:
  /// Tags from here on belong to the collectives and to split groups.
  static constexpr std::uint64_t kFirstReservedTag = std::uint64_t{1} << 62;

  ProcessGroup() = default;
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;
  /// Closes.
  virtual ~ProcessGroup() = default;

  [[nodiscard]] virtual int rank() const noexcept = 0;
  [[nodiscard]] virtual int size() const noexcept = 0;
  /// True if send() and receive() reach `peer`. False for the calling rank itself.
  [[nodiscard]] virtual bool linked(int peer) const noexcept = 0;

  /// send() and receive() post a transfer and return. They throw InvalidArgument for a peer that is
  /// not linked (or the calling rank itself), the cause of an abort, and InvalidState after a
  /// close() without one.
  [[nodiscard]] virtual std::unique_ptr<Transfer> send(int peer, std::uint64_t tag,
                                                       std::span<const std::byte> bytes) = 0;
  [[nodiscard]] virtual std::unique_ptr<Transfer> receive(int peer, std::uint64_t tag,
                                                          std::span<std::byte> target) = 0;

  /// How many connections there are to `peer`; both ends have the same number. 1 unless the group
  /// was made of several (several_connections.hpp): then bulk data in no order goes over all.
  [[nodiscard]] virtual unsigned connections(int /*peer*/) const noexcept { return 1; }
  /// This group over its connection `i` alone; `i` must be below connections(peer) for each peer
  /// used there. Messages of one tag keep their order on it. The group's own send() and receive()
  /// use connection 0; abort() and close() act on the whole group. The reference is valid as long
  /// as the group.
  [[nodiscard]] virtual ProcessGroup& over(unsigned /*i*/) noexcept { return *this; }
  /// A count that rises as bytes come from `peer` or leave for it; always 0 if the backend cannot
  /// see them. Throws what send() throws.
  [[nodiscard]] virtual std::uint64_t moved(int /*peer*/) const { return 0; }

  /// Ends the use of the group: every pending and later wait, send and receive promptly throws
  /// `cause`. The first cause stays. Receive targets may still be written until close() has
  /// returned.
  virtual void abort(std::exception_ptr cause) noexcept = 0;
  /// When close() has returned, no receive target of this group is written any more, and its
  /// threads and descriptors are gone. Pending transfers throw Cancelled, or the cause of an
  /// earlier abort. close() returns after all waits have ended. Idempotent.
  virtual void close() noexcept = 0;

  /// Makes a group of `ranks` that uses this group's links; its rank i is ranks[i]. `ranks` are
  /// ranks of this group, each once, the caller among them; every member passes the same list.
  /// Collective over the members only, without communication. Members that split the same list
  /// several times must do so in the same order. The groups share their links, so an abort of one
  /// aborts all. Closing the new group closes this group only if the new group's transfers are
  /// still pending.
  [[nodiscard]] virtual std::shared_ptr<ProcessGroup> split(std::span<const int> ranks);

  /// The backend's own collectives, used instead of the default ones, which send() and receive()
  /// host memory. Null: it has none. Valid as long as the group.
  [[nodiscard]] virtual collectives::Own* own_collectives() noexcept { return nullptr; }

 private:
  std::uint64_t next_split(const std::vector<int>& ranks);
  Mutex splits_mutex_;
  /// How often each list was split.
  std::map<std::vector<int>, std::uint64_t> splits_ MESHSTAGE_GUARDED_BY(splits_mutex_);
};

/// True if every rank of the group is linked to the caller.
[[nodiscard]] MESHSTAGE_API bool fully_linked(const ProcessGroup& group) noexcept;

}  // namespace meshstage
