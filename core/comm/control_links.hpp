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
  kSilent,  ///< Nothing came from the peer for the silence deadline: it is stopped or hangs, or its
            ///< host vanished.
  kProtocol,  ///< The peer sent bytes that are no frame of this protocol (`detail` says more), so
              ///< the link was dropped.
  kClosed,    ///< The peer said goodbye: it closed its links in order, so it need not be dead.
};
/// "end of file", "silent", "protocol error", "closed".
[[nodiscard]] MESHSTAGE_API std::string_view to_string(LostReason reason) noexcept;

/// The callbacks for messages and losses. The links' one thread calls them, one at a time. They
/// must be short, because no heartbeat leaves meanwhile. They may call send() and set_handlers(),
/// but not close(), and must not throw.
struct ControlHandlers {
  /// `message` is valid during the call.
  std::function<void(int peer, std::span<const std::byte> message)> on_message;
  /// Called before on_message. False keeps the message, and all later ones of the same peer, for
  /// the next handlers. Null: every message is taken.
  std::function<bool(int peer, std::span<const std::byte> message)> takes = {};
  /// Called once for each lost peer, after its last message; `detail` is for people.
  std::function<void(int peer, LostReason reason, const std::string& detail)> on_lost;
  /// Called before each heartbeat. While it returns false no heartbeat leaves, so the peers report
  /// this rank as silent: for a rank that no longer acts on messages. Must not call the links.
  /// Null: always true. Links without a wire do not call it.
  std::function<bool()> alive = {};
};

/// Sends small messages to a few linked peers, and reports a peer's death. Links carry no bulk
/// data: no message waits behind 256 MiB of it, and a stall of bulk data is not taken for a death.
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

  /// Replaces the handlers. The new handlers first get, in order, the messages that came while
  /// there were none (`{}`). Returns when no old handler runs any more; on the links' own thread it
  /// returns at once, and later messages go to the new handlers.
  virtual void set_handlers(ControlHandlers handlers) = 0;
  /// Queues a copy of `message` and returns; never waits for a slow peer. After the peer's on_lost,
  /// or after close(), the message is dropped silently. Throws InvalidArgument for a rank that is
  /// not linked and for a message above kMaxMessageBytes.
  virtual void send(int peer, std::span<const std::byte> message) = 0;
  /// Sends the queued messages, as far as the sockets take them without waiting, and a goodbye to
  /// every peer. Then ends the thread and the connections. No handler runs after close() has
  /// returned. Idempotent.
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
