#pragma once
// The wire format between a store's clients and its server: frames
// (core/comm/socket/framing_impl.hpp) with magic "MSK1", version 1, at most 16 MiB of payload, and
// the types
//
//   client   1 hello                      -> 8 values {instance}
//            2 set {key, value}           -> 8 values {}
//            3 get {key}                  -> 8 values {value}, or 9 absent
//            4 create {key, value}        -> 8 values {what is there now}
//            5 list {prefix}              -> 8 values {key, key, ...}, sorted
//            6 remove {key}               -> 8 values {}
//            7 wait {key, key, ...}       -> 8 values {value of the first key that comes}
//   server   8 values, 9 absent, 10 refusal {text}: and then the end of the connection
//
// A payload is a 4-byte count of texts, then for each its length in 4 bytes and its bytes. A client
// says hello first, once; then it asks one thing at a time. It gives up a wait by closing. The
// instance is a random number that a server draws when it starts: a client that meets another one
// behind the same address knows that the entries it has seen are gone.
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/comm/socket/framing_impl.hpp>

namespace meshstage::tcp_store {

enum class Type : std::uint16_t {
  kHello = 1,
  kSet = 2,
  kGet = 3,
  kCreate = 4,
  kList = 5,
  kRemove = 6,
  kWait = 7,
  kValues = 8,
  kAbsent = 9,
  kRefusal = 10,
};

inline constexpr std::size_t kMaxPayload = std::size_t{16} << 20;
inline std::size_t longest_payload(std::uint16_t /*type*/) { return kMaxPayload; }
inline constexpr framing::FrameFormat kFormat{0x314b534d, 1, 10, longest_payload};

using Texts = std::vector<std::string>;

[[nodiscard]] inline std::size_t payload_bytes(std::span<const std::string> texts) {
  std::size_t size = 4;
  for (const auto& text : texts) size += 4 + text.size();
  return size;
}

[[nodiscard]] inline std::vector<std::byte> encode(std::span<const std::string> texts) {
  std::vector<std::byte> bytes(payload_bytes(texts));
  little_endian::store(bytes.data(), static_cast<std::uint32_t>(texts.size()));
  std::size_t at = 4;
  for (const auto& text : texts) {
    little_endian::store(bytes.data() + at, static_cast<std::uint32_t>(text.size()));
    if (!text.empty()) std::memcpy(bytes.data() + at + 4, text.data(), text.size());
    at += 4 + text.size();
  }
  return bytes;
}

/// Nothing if `bytes` are no payload.
[[nodiscard]] inline std::optional<Texts> decode(std::span<const std::byte> bytes) {
  if (bytes.size() < 4) return std::nullopt;
  const auto count = little_endian::load<std::uint32_t>(bytes.data());
  bytes = bytes.subspan(4);
  if (count > bytes.size() / 4) return std::nullopt;
  Texts texts;
  texts.reserve(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    if (bytes.size() < 4) return std::nullopt;
    const std::size_t length = little_endian::load<std::uint32_t>(bytes.data());
    if (bytes.size() - 4 < length) return std::nullopt;
    texts.emplace_back(reinterpret_cast<const char*>(bytes.data() + 4), length);
    bytes = bytes.subspan(4 + length);
  }
  if (!bytes.empty()) return std::nullopt;
  return texts;
}

}  // namespace meshstage::tcp_store
