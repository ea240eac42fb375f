#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// Why a link was lost.
enum class LostReason : std::uint8_t {
  kEndOfFile,  ///< The connection ended without a goodbye: the peer's process is dead.
  kSilent,  ///< The peer said nothing for the silence deadline: it is stopped or hangs, or its host
            ///< vanished.
  kProtocol,  ///< The peer sent bytes that are no frame of this protocol (`detail` says more), so
              ///< the link was dropped.
  kClosed,    ///< The peer said goodbye: it closed its links in order, so it need not be dead.
};
/// "end of file", "silent", "protocol error", "closed".
[[nodiscard]] MESHSTAGE_API std::string_view to_string(LostReason reason) noexcept;

/// The functions by which links tell their owner of messages and losses. They run on the links' one
/// thread, one at a time, and must be short: while one runs no heartbeat leaves. They may call
/// send() and set_handlers(), but not close(). They must not throw.
struct ControlHandlers {
  /// `message` is valid during the call.
  std::function<void(int peer, std::span<const std::byte> message)> on_message;
  /// Called before on_message, on the same thread: false turns the message down. That message, and
  /// all later ones of the same peer, wait for the next handlers. Null: every message is taken.
  std::function<bool(int peer, std::span<const std::byte> message)> takes = {};
  /// Called once for each lost peer, after the last of its messages; `detail` is for people.
  std::function<void(int peer, LostReason reason, const std::string& detail)> on_lost;
  /// Asked before each heartbeat: while it says false none leaves, and after the silence deadline
  /// the peers take this rank for silent, as they should where what acts on the messages hangs.
  /// Must only look, and not call the links. Null: true. Links without a wire do not ask.
  std::function<bool()> alive = {};
};

/// Small messages to a few linked peers, and the news of a peer's death. Links carry no bulk data:
/// so no message waits behind 256 MiB of it, and a stall of bulk data is not taken for a death.
/// Messages between two ranks arrive in order, whole and once, or the link is lost.
///
/// Threads: the links have one thread (`ms-links`), which runs the handlers. Any thread may call
/// send() and set_handlers(); any but the links' own may call close() and the destructor.
class MESHSTAGE_API ControlLinks {
 public:
  static constexpr std::size_t kMaxMessageBytes = std::size_t{16} << 20;

  ControlLinks() = default;
  ControlLinks(const ControlLinks&) = delete;
  ControlLinks& operator=(const ControlLinks&) = delete;
  /// Closes.
  virtual ~ControlLinks() = default;

  [[nodiscard]] virtual int rank() const noexcept = 0;
  /// The linked ranks, ascending. The list does not change when a rank is lost.
  [[nodiscard]] virtual const std::vector<int>& peers() const noexcept = 0;

  /// Replaces the handlers. The new handlers first get, in order, what came while there were none
  /// (`{}`). Returns when no old handler runs any more; called on the links' own thread, it returns
  /// at once, and later messages go to the new handlers.
  virtual void set_handlers(ControlHandlers handlers) = 0;
  /// Queues a copy of `message` and returns; never waits for a slow peer. Once the peer is lost
  /// (on_lost tells that) or the links are closed, the message is dropped silently. Throws
  /// InvalidArgument for a rank that is not linked and for a message above kMaxMessageBytes.
  virtual void send(int peer, std::span<const std::byte> message) = 0;
  /// Sends what is queued, as far as the sockets take it without waiting, and a goodbye to every
  /// peer. Then it ends the thread and the connections. No handler runs after close() has returned.
  /// Idempotent.
  virtual void close() noexcept = 0;
};

/// Timing of links that have a real wire. Two peers need not agree.
struct LinkOptions {
  /// A heartbeat leaves on each link this often.
  std::chrono::milliseconds heartbeat_interval{200};
  /// A peer from which nothing came for this long is kSilent. At least three intervals.
  std::chrono::milliseconds silence_deadline{5000};
};

}  // namespace meshstage
