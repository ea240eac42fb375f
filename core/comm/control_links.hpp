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

/// Why a link is gone.
enum class LostReason : std::uint8_t {
  kEndOfFile,  ///< The connection ended without a goodbye: the peer's process is dead.
  kSilent,  ///< Nothing was heard within the silence deadline: stopped, hung, or its host vanished.
  kProtocol,  ///< It sent what is no frame of ours; the detail says what. The link was dropped.
  kClosed,    ///< It said goodbye: it closed its links in order, and is not dead for that.
};
/// "end of file", "silent", "protocol error", "closed".
[[nodiscard]] MESHSTAGE_API std::string_view to_string(LostReason reason) noexcept;

/// What the owner of links wants to hear. Both run on the links' one thread, one at a time, and
/// must be short: while one runs no heartbeat leaves. They may call send() and set_handlers(), not
/// close(). They must not throw.
struct ControlHandlers {
  /// `message` is valid during the call.
  std::function<void(int peer, std::span<const std::byte> message)> on_message;
  /// Asked before on_message; runs likewise. A message that it turns down, and all that comes from
  /// that peer after it, waits for the next handlers. Null: everything is taken.
  std::function<bool(int peer, std::span<const std::byte> message)> takes = {};
  /// Once for each peer, after the last of its messages; `detail` is for people.
  std::function<void(int peer, LostReason reason, const std::string& detail)> on_lost;
};

/// Small messages to a few linked peers, and the news of their death. Never used for bulk data, so
/// that a message is not behind 256 MiB of it, and a stall of bulk data is not taken for a death.
/// Messages between two ranks arrive in order, whole and once, or the link is lost.
///
/// Threads: one of its own (`ms-links`), which runs the handlers. send(), lost() and set_handlers()
/// from any thread; close() and the destructor from any but the links' own.
class MESHSTAGE_API ControlLinks {
 public:
  static constexpr std::size_t kMaxMessageBytes = std::size_t{16} << 20;

  ControlLinks() = default;
  ControlLinks(const ControlLinks&) = delete;
  ControlLinks& operator=(const ControlLinks&) = delete;
  /// Closes.
  virtual ~ControlLinks() = default;

  [[nodiscard]] virtual int rank() const noexcept = 0;
  /// The linked ranks, ascending; it does not change when one is lost.
  [[nodiscard]] virtual const std::vector<int>& peers() const noexcept = 0;

  /// Replaces the handlers; what came while there were none (`{}`) is delivered first, in order.
  /// Returns after a handler that runs on the links' thread has ended (called on that thread, at
  /// once: then later messages go to the new handlers).
  virtual void set_handlers(ControlHandlers handlers) = 0;
  /// Queues and returns; never waits for a slow peer. The bytes are copied. Dropped silently once
  /// the peer is lost (on_lost tells) or the links are closed. Throws InvalidArgument for a rank
  /// that is not linked and for a message above kMaxMessageBytes.
  virtual void send(int peer, std::span<const std::byte> message) = 0;
  /// Says goodbye to every peer, after what was queued before as far as the sockets take it without
  /// waiting; then ends the thread and the connections. No handler runs after it returns.
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
