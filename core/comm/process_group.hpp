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

/// One send or receive that was posted. Move it nowhere: it is held by unique_ptr.
///
/// The memory given to send()/receive() must stay valid, and a receive target untouched, until
/// wait() has returned normally, or this object is destroyed, or the group is closed. Destroying a
/// transfer that is not complete takes its memory out of use before the destructor returns; as part
/// of a message may be on the wire then, it also aborts the group with Cancelled.
class MESHSTAGE_API Transfer {
 public:
  virtual ~Transfer() = default;
  /// Returns when the transfer is complete: a receive target holds all bytes; a source may be
  /// changed (which does not say that the peer has them). Returns at once if called again.
  /// Throws the cause given to abort(); PeerLost with the peer's rank, if the backend itself
  /// noticed its death; PeerSilent with the peer's rank at the deadline, after which the transfer
  /// is still pending and may be waited for again; Cancelled if the group was closed; CorruptData
  /// if the peer's message has another length (a backend that cannot tell runs into the deadline
  /// instead). Threads: one at a time for one transfer.
  virtual void wait(Deadline deadline) = 0;
  /// Waits as long as bytes move between the two ranks, of whatever transfer and either way: throws
  /// PeerSilent once none has moved for `silence`, and else as wait(). So a slow wire is no dead
  /// one: one packet in `silence` is enough. A backend that cannot see bytes move (this default)
  /// waits for `silence` in all.
  virtual void wait_while_moving(std::chrono::milliseconds silence) {
    wait(Deadline::after(silence));
  }
};

/// Ranks 0..size-1 that send bytes to each other. Everything else (collectives.hpp) is made of what
/// is here. Messages between two ranks with one tag arrive in the order in which they were sent;
/// both sides must post the same length. An empty message completes at once and synchronises
/// nothing. Nothing is buffered: a send completes when the peer has taken it, or sooner.
///
/// Which peers can be reached is fixed when the group is made. A backend need not notice that a
/// peer died (Gloo does not in mid transfer): who watches the control links calls abort().
///
/// Threads: send, receive and abort from any thread; close from any but a waiting one.
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
  /// True if send() and receive() reach `peer`. False for the own rank.
  [[nodiscard]] virtual bool linked(int peer) const noexcept = 0;

  /// Post and return. Throws InvalidArgument for a peer that is not linked (or the own rank), the
  /// cause of an abort, InvalidState after close().
  [[nodiscard]] virtual std::unique_ptr<Transfer> send(int peer, std::uint64_t tag,
                                                       std::span<const std::byte> bytes) = 0;
  [[nodiscard]] virtual std::unique_ptr<Transfer> receive(int peer, std::uint64_t tag,
                                                          std::span<std::byte> target) = 0;

  /// Ends the group's use: every pending and later wait, send and receive throws `cause`, promptly.
  /// The first cause stays. Receive targets may still be written until close() has returned.
  virtual void abort(std::exception_ptr cause) noexcept = 0;
  /// Quiesces: after it returns, no receive target of this group is ever written again, and no
  /// thread and no descriptor of it is left. Pending transfers throw Cancelled, or the cause of an
  /// earlier abort. Idempotent; waits for waiting threads to leave.
  virtual void close() noexcept = 0;

  /// A group of `ranks` (this group's numbers, each once, the caller's among them; every member
  /// passes the same list) that uses this group's links: rank i of it is ranks[i]. Collective over
  /// its members only, without communication. Members that split the same list again must do it in
  /// the same order. The groups share their links, so an abort of one is an abort of all; closing
  /// the child closes this one only if transfers of the child are still pending.
  [[nodiscard]] virtual std::shared_ptr<ProcessGroup> split(std::span<const int> ranks);

 private:
  std::uint64_t next_split(const std::vector<int>& ranks);
  Mutex splits_mutex_;
  /// How often each list was split.
  std::map<std::vector<int>, std::uint64_t> splits_ MESHSTAGE_GUARDED_BY(splits_mutex_);
};

/// True if every rank of the group is linked to the caller.
[[nodiscard]] MESHSTAGE_API bool fully_linked(const ProcessGroup& group) noexcept;

}  // namespace meshstage
