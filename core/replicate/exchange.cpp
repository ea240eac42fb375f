#include <meshstage/core/replicate/exchange.hpp>

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include <meshstage/core/comm/control_links.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::exchange {
namespace {

constexpr std::uint32_t kMagic = 0x5850534DU;      // "MSPX"
constexpr std::uint32_t kWantMagic = 0x5750534DU;  // "MSPW"
constexpr std::uint16_t kVersion = 3;
constexpr std::size_t kStartBytes = 8 + 11 * 8;
constexpr std::size_t kWantBytes = 8 + 4 * 8;
constexpr std::size_t kNamedBytes = 16;  // and the name

template <class T>
void put(std::vector<std::byte>& out, T value) {
  const auto* bytes = reinterpret_cast<const std::byte*>(&value);  // little-endian hosts only
  out.insert(out.end(), bytes, bytes + sizeof value);
}

template <class T>
T take(std::span<const std::byte>& in) {
  T value;
  std::memcpy(&value, in.data(), sizeof value);
  in = in.subspan(sizeof value);
  return value;
}

/// Checks what both kinds of messages begin with, and takes it.
template <class Refuse>
void take_head(std::span<const std::byte>& in, bool magic, std::size_t least,
               const Refuse& refuse) {
  if (!magic || in.size() < least) {
    throw refuse("length " + std::to_string(in.size()) + ", " + std::to_string(least) +
                 " at least");
  }
  in = in.subspan(sizeof kMagic);
  if (const auto version = take<std::uint16_t>(in); version != kVersion) {
    throw refuse("version " + std::to_string(version) + ", this library reads " +
                 std::to_string(kVersion));
  }
  if (take<std::uint16_t>(in) != 0) throw refuse("reserved field is not 0");
}

bool begins_with(std::span<const std::byte> bytes, std::uint32_t magic) noexcept {
  return bytes.size() >= sizeof magic && std::memcmp(bytes.data(), &magic, sizeof magic) == 0;
}

}  // namespace

std::vector<std::byte> encode(const StreamStart& start) {
  std::vector<std::byte> out;
  out.reserve(kStartBytes);
  put(out, kMagic);
  put(out, kVersion);
  put(out, std::uint16_t{0});
  put(out, start.generation);
  put(out, static_cast<std::uint64_t>(start.owner));
  put(out, start.id.generation);
  put(out, start.id.step);
  put(out, start.shape.image_bytes);
  put(out, start.shape.manifest_bytes);
  put(out, start.shape.block_bytes);
  put(out, std::uint64_t{start.shape.with_manifest ? 1U : 0U});
  put(out, start.shape.borrowed_bytes);
  put(out, std::uint64_t{start.shape.loans});
  put(out, static_cast<std::uint64_t>(start.content));
  return out;
}

bool is_stream_start(std::span<const std::byte> bytes) noexcept {
  return begins_with(bytes, kMagic);
}

StreamStart decode_stream_start(std::span<const std::byte> bytes, int from, int world_size) {
  const auto refuse = [from](const std::string& what) -> CorruptData {
    return make_error<CorruptData>("stream start from rank " + std::to_string(from) + ": " + what,
                                   from);
  };
  take_head(bytes, is_stream_start(bytes), kStartBytes, refuse);
  StreamStart start;
  start.generation = take<std::uint64_t>(bytes);
  const auto owner = take<std::uint64_t>(bytes);
  if (owner >= static_cast<std::uint64_t>(world_size)) {
    throw refuse("owner " + std::to_string(owner) + " of " + std::to_string(world_size) + " ranks");
  }
  start.owner = static_cast<int>(owner);
  start.id.generation = take<std::uint64_t>(bytes);
  start.id.step = take<std::uint64_t>(bytes);
  start.shape.image_bytes = take<std::uint64_t>(bytes);
  start.shape.manifest_bytes = take<std::uint64_t>(bytes);
  start.shape.block_bytes = take<std::uint64_t>(bytes);
  const auto with_manifest = take<std::uint64_t>(bytes);
  if (with_manifest > 1) throw refuse("with-manifest is " + std::to_string(with_manifest));
  start.shape.with_manifest = with_manifest == 1;
  start.shape.borrowed_bytes = take<std::uint64_t>(bytes);
  const auto loans = take<std::uint64_t>(bytes);
  if (loans > std::numeric_limits<std::uint32_t>::max()) {
    throw refuse("loans " + std::to_string(loans));
  }
  start.shape.loans = static_cast<std::uint32_t>(loans);
  const auto content = take<std::uint64_t>(bytes);
  if (content > 1) throw refuse("content is " + std::to_string(content));
  start.content = static_cast<Content>(content);
  if (!bytes.empty()) throw refuse("length: " + std::to_string(bytes.size()) + " bytes too many");
  try {
    transfer::check(start.shape);
  } catch (const InvalidArgument& e) {
    throw refuse(e.what());
  }
  return start;
}

std::vector<std::byte> encode(const Want& want) {
  std::vector<std::byte> out;
  put(out, kWantMagic);
  put(out, kVersion);
  put(out, std::uint16_t{0});
  put(out, want.generation);
  put(out, want.id.generation);
  put(out, want.id.step);
  put(out, std::uint64_t{want.storages.size()});
  for (const auto& storage : want.storages) {
    put(out, storage.bytes);
    put(out, std::uint64_t{storage.name.size()});
    const auto name = std::as_bytes(std::span(storage.name));
    out.insert(out.end(), name.begin(), name.end());
  }
  return out;
}

bool is_want(std::span<const std::byte> bytes) noexcept { return begins_with(bytes, kWantMagic); }

Want decode_want(std::span<const std::byte> bytes, int from) {
  const auto refuse = [from](const std::string& what) -> CorruptData {
    return make_error<CorruptData>("want from rank " + std::to_string(from) + ": " + what, from);
  };
  take_head(bytes, is_want(bytes), kWantBytes, refuse);
  Want want;
  want.generation = take<std::uint64_t>(bytes);
  want.id.generation = take<std::uint64_t>(bytes);
  want.id.step = take<std::uint64_t>(bytes);
  const auto count = take<std::uint64_t>(bytes);
  if (count > bytes.size() / kNamedBytes) {
    throw refuse(std::to_string(count) + " storages in " + std::to_string(bytes.size()) + " bytes");
  }
  std::uint64_t all = 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    if (bytes.size() < kNamedBytes) throw refuse("it ends within storage " + std::to_string(i));
    Named storage;
    storage.bytes = take<std::uint64_t>(bytes);
    const auto length = take<std::uint64_t>(bytes);
    if (storage.bytes == 0 || storage.bytes > transfer::kMostBytes - all || length > bytes.size()) {
      throw refuse("storage " + std::to_string(i) + " of " + std::to_string(storage.bytes) +
                   " bytes with a name of " + std::to_string(length));
    }
    all += storage.bytes;
    storage.name.assign(reinterpret_cast<const char*>(bytes.data()), length);
    bytes = bytes.subspan(length);
    want.storages.push_back(std::move(storage));
  }
  if (!bytes.empty()) throw refuse("length: " + std::to_string(bytes.size()) + " bytes too many");
  return want;
}

std::vector<std::string> names_for_a_want(std::vector<std::string> names) {
  // Room for what the link itself puts around a message.
  constexpr std::size_t kMost = ControlLinks::kMaxMessageBytes - 4096;
  std::sort(names.begin(), names.end());
  std::size_t bytes = kWantBytes;
  const auto beyond = std::find_if(names.begin(), names.end(), [&](const std::string& name) {
    bytes += kNamedBytes + name.size();
    return bytes > kMost;
  });
  names.erase(beyond, names.end());
  return names;
}

}  // namespace meshstage::exchange
