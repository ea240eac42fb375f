#pragma once
// Every protocol of meshstage cuts its stream into frames: a header of 32 bytes and a payload, all
// numbers little-endian. The protocols differ in magic, version, types and the longest payload of
// each type (FrameFormat).
//
//   offset  bytes  header
//        0      4  magic
//        4      2  version
//        6      2  type, from 1
//        8      4  length of the payload
//       12      4  number: how many frames this end has sent over this connection before it
//       16      8  XXH3-64 of the payload
//       24      8  XXH3-64 of the 24 bytes before
//
// TCP's checksum is weak: if a proxy, a driver or broken memory changes the stream, number and
// digests show it, and the connection ends.
#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include <meshstage/core/error/little_endian.hpp>

namespace meshstage::framing {

inline constexpr std::size_t kHeaderBytes = 32;

struct FrameFormat {
  std::uint32_t magic = 0;
  std::uint16_t version = 0;
  std::uint16_t last_type = 0;
  /// The longest payload of a type, in bytes.
  std::size_t (*longest)(std::uint16_t type) = nullptr;
};

/// A whole frame, the `number`-th of its connection.
inline std::vector<std::byte> encode_frame(const FrameFormat& format, std::uint16_t type,
                                           std::span<const std::byte> payload,
                                           std::uint32_t number) {
  std::vector<std::byte> frame(kHeaderBytes + payload.size());
  little_endian::store(frame.data(), format.magic);
  little_endian::store(frame.data() + 4, format.version);
  little_endian::store(frame.data() + 6, type);
  little_endian::store(frame.data() + 8, static_cast<std::uint32_t>(payload.size()));
  little_endian::store(frame.data() + 12, number);
  little_endian::store(frame.data() + 16, XXH3_64bits(payload.data(), payload.size()));
  little_endian::store(frame.data() + 24, XXH3_64bits(frame.data(), 24));
  if (!payload.empty()) std::memcpy(frame.data() + kHeaderBytes, payload.data(), payload.size());
  return frame;
}

struct Header {
  std::uint16_t type = 0;
  std::size_t length = 0;
  std::uint64_t payload_digest = 0;
  const char* wrong = nullptr;  ///< What is wrong with it, or null.
  /// What is wrong with its payload, or null.
  [[nodiscard]] const char* wrong_payload(std::span<const std::byte> payload) const {
    return XXH3_64bits(payload.data(), payload.size()) == payload_digest ? nullptr
                                                                         : "a damaged frame";
  }
};

/// Decodes the kHeaderBytes at `bytes`; `number` is the number of the frame that is due.
inline Header decode_header(const FrameFormat& format, const std::byte* bytes,
                            std::uint32_t number) {
  Header header;
  header.type = little_endian::load<std::uint16_t>(bytes + 6);
  header.length = little_endian::load<std::uint32_t>(bytes + 8);
  header.payload_digest = little_endian::load<std::uint64_t>(bytes + 16);
  if (little_endian::load<std::uint32_t>(bytes) != format.magic) {
    header.wrong = "no frame of this protocol (wrong magic)";
  } else if (little_endian::load<std::uint16_t>(bytes + 4) != format.version) {
    header.wrong = "another version of this protocol";
  } else if (little_endian::load<std::uint64_t>(bytes + 24) != XXH3_64bits(bytes, 24)) {
    header.wrong = "a damaged frame header";
  } else if (header.type < 1 || header.type > format.last_type) {
    header.wrong = "an unknown type of frame";
  } else if (header.length > format.longest(header.type)) {
    header.wrong = "a frame that is too long";
  } else if (little_endian::load<std::uint32_t>(bytes + 12) != number) {
    header.wrong = "a frame out of turn (one is missing, repeated or displaced)";
  }
  return header;
}

}  // namespace meshstage::framing
