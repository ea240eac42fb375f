#pragma once
// The wire format of control links: frames (framing_impl.hpp) with magic "MSL1" and version 4, and
// the types below. No older version is read: 1 had neither numbers nor digests of payloads, the
// ranks of 2 did not say while forming how many connections for images they want, and those of 3
// said it only for a recovery.
//   1 hello, 2 welcome, 3 refusal, 4 message, 5 heartbeat, 6 goodbye
// A message has at most 16 MiB, all others 256 bytes.
//
//   offset  bytes  payload of hello and welcome
//        0      8  XXH3-64 of the job's name
//        8      8  generation
//       16      8  XXH3-64 of the links' name
//       24      4  rank that speaks
//       28      4  rank that is spoken to
//       32      4  world size
//       36      4  zero
//       40      8  nonce: the one that the listener put into the Store beside its address, so that
//                  who connects has read it; a welcome repeats it
//       48     32  which process speaks, for a peer that can watch it (core/os/process_watch.hpp):
//                  XXH3-64 of the boot id, inode of the pid namespace, pid, start time
//
// The higher rank connects and says hello. The lower rank checks every field and answers welcome,
// or a refusal with a text and the end of the connection. A later refusal says that the frame
// before it was not understood; it ends the link, too. Heartbeats and goodbyes have no payload. The
// whole frame of a message with the two bytes 68 69, the second frame of its connection, is:
//   4d 53 4c 31  04 00  04 00  02 00 00 00  01 00 00 00  (8 + 8 bytes of digests)  68 69
#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/comm/control_links.hpp>
#include <meshstage/core/comm/socket/framing_impl.hpp>
#include <meshstage/core/comm/transport.hpp>
#include <meshstage/core/os/process_watch.hpp>

namespace meshstage::link_wire {

enum class FrameType : std::uint16_t {
  kHello = 1,
  kWelcome = 2,
  kRefusal = 3,
  kMessage = 4,
  kHeartbeat = 5,
  kGoodbye = 6,
};

using framing::kHeaderBytes;
inline constexpr std::size_t kGreetingBytes = 80;
inline constexpr std::size_t kMaxSmallPayload = 256;

inline std::size_t longest_payload(std::uint16_t type) {
  return static_cast<FrameType>(type) == FrameType::kMessage ? ControlLinks::kMaxMessageBytes
                                                             : kMaxSmallPayload;
}
inline constexpr framing::FrameFormat kFormat{0x314c534d, 4, 6, longest_payload};

inline std::uint64_t digest(const std::string& text) {
  return XXH3_64bits(text.data(), text.size());
}

struct Greeting {
  std::uint64_t job = 0;
  std::uint64_t generation = 0;
  std::uint64_t name = 0;
  std::int32_t from = 0;
  std::int32_t to = 0;
  std::int32_t world_size = 0;
  std::uint64_t nonce = 0;
  ProcessAddress process;  ///< The process that sends this greeting.

  [[nodiscard]] static Greeting of(const ConnectRequest& request, int from, int to,
                                   std::uint64_t nonce) {
    return {digest(request.job),
            request.generation,
            digest(request.name),
            from,
            to,
            request.world_size,
            nonce,
            own_process_address()};
  }
  [[nodiscard]] std::vector<std::byte> encode() const {
    std::vector<std::byte> bytes(kGreetingBytes);
    little_endian::store(bytes.data(), job);
    little_endian::store(bytes.data() + 8, generation);
    little_endian::store(bytes.data() + 16, name);
    little_endian::store(bytes.data() + 24, from);
    little_endian::store(bytes.data() + 28, to);
    little_endian::store(bytes.data() + 32, world_size);
    little_endian::store(bytes.data() + 40, nonce);
    little_endian::store(bytes.data() + 48, process.boot);
    little_endian::store(bytes.data() + 56, process.pid_namespace);
    little_endian::store(bytes.data() + 64, process.pid);
    little_endian::store(bytes.data() + 72, process.start_time);
    return bytes;
  }
  /// `bytes` must have kGreetingBytes bytes.
  [[nodiscard]] static Greeting decode(std::span<const std::byte> bytes) {
    const std::byte* const at = bytes.data();
    Greeting g;
    g.job = little_endian::load<std::uint64_t>(at);
    g.generation = little_endian::load<std::uint64_t>(at + 8);
    g.name = little_endian::load<std::uint64_t>(at + 16);
    g.from = little_endian::load<std::int32_t>(at + 24);
    g.to = little_endian::load<std::int32_t>(at + 28);
    g.world_size = little_endian::load<std::int32_t>(at + 32);
    g.nonce = little_endian::load<std::uint64_t>(at + 40);
    g.process = {
        little_endian::load<std::uint64_t>(at + 48), little_endian::load<std::uint64_t>(at + 56),
        little_endian::load<std::int64_t>(at + 64), little_endian::load<std::uint64_t>(at + 72)};
    return g;
  }
  /// The first field in which `got` differs from this, or null.
  [[nodiscard]] const char* difference(const Greeting& got) const {
    if (got.job != job) return "job";
    if (got.generation != generation) return "generation";
    if (got.name != name) return "name of the links";
    if (got.world_size != world_size) return "world size";
    if (got.from != from || got.to != to) return "rank";
    if (got.nonce != nonce) return "nonce";
    return nullptr;
  }
};

}  // namespace meshstage::link_wire
