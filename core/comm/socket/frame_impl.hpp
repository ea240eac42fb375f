#pragma once
// What control links say on the wire: frames of a 16-byte header and a payload, all numbers
// little-endian.
//
//   offset  bytes  header
//        0      4  magic "MSL1"
//        4      2  version, 1
//        6      2  type: 1 hello, 2 welcome, 3 refusal, 4 message, 5 heartbeat, 6 goodbye
//        8      4  length of the payload; at most 16 MiB for a message, 256 for all others
//       12      4  the low half of XXH3-64 of the 12 bytes before
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
//       who
//                  connects has read it; a welcome repeats it
//
// The higher rank connects and says hello; the lower one checks every field and answers welcome, or
// refusal with a text and the end of the connection. Heartbeats and goodbyes have no payload. A
// message of two bytes 68 69 is, whole:
//   4d 53 4c 31  01 00  04 00  02 00 00 00  (4 bytes of digest)  68 69
#include <xxhash.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/comm/control_links.hpp>
#include <meshstage/core/comm/transport.hpp>

namespace meshstage::link_wire {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire format is little-endian");

enum class FrameType : std::uint16_t {
  kHello = 1,
  kWelcome = 2,
  kRefusal = 3,
  kMessage = 4,
  kHeartbeat = 5,
  kGoodbye = 6,
};

inline constexpr std::size_t kHeaderBytes = 16;
inline constexpr std::size_t kGreetingBytes = 48;
inline constexpr std::size_t kMaxSmallPayload = 256;
inline constexpr std::uint32_t kMagic = 0x314c534d;
inline constexpr std::uint16_t kVersion = 1;

template <class T>
void put(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof(T));
}
template <class T>
T take(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

inline std::uint64_t digest(const std::string& text) {
  return XXH3_64bits(text.data(), text.size());
}

/// A whole frame.
inline std::vector<std::byte> encode_frame(FrameType type, std::span<const std::byte> payload) {
  std::vector<std::byte> frame(kHeaderBytes + payload.size());
  put(frame.data(), kMagic);
  put(frame.data() + 4, kVersion);
  put(frame.data() + 6, static_cast<std::uint16_t>(type));
  put(frame.data() + 8, static_cast<std::uint32_t>(payload.size()));
  put(frame.data() + 12, static_cast<std::uint32_t>(XXH3_64bits(frame.data(), 12)));
  if (!payload.empty()) std::memcpy(frame.data() + kHeaderBytes, payload.data(), payload.size());
  return frame;
}

struct Header {
  FrameType type = FrameType::kHeartbeat;
  std::size_t length = 0;
  const char* wrong = nullptr;  ///< What is wrong with it, or null.
};

/// Of the first kHeaderBytes at `bytes`.
inline Header decode_header(const std::byte* bytes) {
  Header header;
  const auto type = take<std::uint16_t>(bytes + 6);
  header.type = static_cast<FrameType>(type);
  header.length = take<std::uint32_t>(bytes + 8);
  const auto check = static_cast<std::uint32_t>(XXH3_64bits(bytes, 12));
  const bool message = header.type == FrameType::kMessage;
  if (take<std::uint32_t>(bytes) != kMagic) {
    header.wrong = "no frame of control links (wrong magic)";
  } else if (take<std::uint16_t>(bytes + 4) != kVersion) {
    header.wrong = "another version of control links";
  } else if (take<std::uint32_t>(bytes + 12) != check) {
    header.wrong = "a damaged frame header";
  } else if (type < 1 || type > 6) {
    header.wrong = "an unknown type of frame";
  } else if (header.length > (message ? ControlLinks::kMaxMessageBytes : kMaxSmallPayload)) {
    header.wrong = "a frame that is too long";
  }
  return header;
}

struct Greeting {
  std::uint64_t job = 0;
  std::uint64_t generation = 0;
  std::uint64_t name = 0;
  std::int32_t from = 0;
  std::int32_t to = 0;
  std::int32_t world_size = 0;
  std::uint64_t nonce = 0;

  [[nodiscard]] static Greeting of(const ConnectRequest& request, int from, int to,
                                   std::uint64_t nonce) {
    return {digest(request.job),
            request.generation,
            digest(request.name),
            from,
            to,
            request.world_size,
            nonce};
  }
  [[nodiscard]] std::vector<std::byte> encode() const {
    std::vector<std::byte> bytes(kGreetingBytes);
    put(bytes.data(), job);
    put(bytes.data() + 8, generation);
    put(bytes.data() + 16, name);
    put(bytes.data() + 24, from);
    put(bytes.data() + 28, to);
    put(bytes.data() + 32, world_size);
    put(bytes.data() + 40, nonce);
    return bytes;
  }
  /// Of kGreetingBytes bytes.
  [[nodiscard]] static Greeting decode(std::span<const std::byte> bytes) {
    const std::byte* const at = bytes.data();
    Greeting g;
    g.job = take<std::uint64_t>(at);
    g.generation = take<std::uint64_t>(at + 8);
    g.name = take<std::uint64_t>(at + 16);
    g.from = take<std::int32_t>(at + 24);
    g.to = take<std::int32_t>(at + 28);
    g.world_size = take<std::int32_t>(at + 32);
    g.nonce = take<std::uint64_t>(at + 40);
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
