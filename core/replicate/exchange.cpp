#include <meshstage/core/replicate/exchange.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <string>

#include <meshstage/core/comm/control_links.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/image.hpp>

namespace meshstage::exchange {
namespace {

constexpr std::uint32_t kMagic = 0x5850534DU;      // "MSPX"
constexpr std::uint32_t kWantMagic = 0x5750534DU;  // "MSPW"
constexpr std::uint16_t kVersion = 3;
constexpr std::size_t kStartBytes = 8 + 11 * 8;
constexpr std::size_t kWantBytes = 8 + 4 * 8;
constexpr std::size_t kNamedBytes = 16;  // and the name
/// No image is larger than this, so sizes from the wire cannot make sums wrap.
constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 56;

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

/// Transfers in flight, oldest first. If one throws, the rest are destroyed before the memory goes:
/// see Transfer.
class Window {
 public:
  explicit Window(const Link& link) : link_(link) {}

  template <class Post, class Done>
  void run(const std::vector<Piece>& pieces, Post&& post, Done&& done) {
    for (std::size_t next = 0, finished = 0; finished < pieces.size();) {
      if (next < pieces.size() && flying_.size() < kWindow) {
        flying_.push_back(post(next++));
        continue;
      }
      flying_.front()->wait(Deadline::after(link_.stall));
      flying_.pop_front();
      done(finished++);
      if (link_.on_piece) link_.on_piece(finished, pieces.size());
    }
  }

 private:
  const Link& link_;
  std::deque<std::unique_ptr<Transfer>> flying_;
};

/// Bytes of the data section before the trailer, whose size grows with their number of blocks.
std::uint64_t digested_bytes(const Shape& shape) {
  const std::uint64_t data_bytes = shape.image_bytes - shape.manifest_bytes;
  std::uint64_t digested = data_bytes;
  for (int round = 0; round < 4; ++round) {
    const std::uint64_t trailer = trailer_size(digested, shape.block_bytes, shape.shares);
    if (trailer > data_bytes) throw CorruptData("an image too small for its trailer");
    digested = data_bytes - trailer;
  }
  return digested;
}

/// Where a piece lies in the memory of an image or of its replica.
template <class Byte>
std::span<Byte> place_of(std::span<Byte> image, const Shape& shape, const Piece& piece) {
  const std::uint64_t gap = image.size() == shape.image_bytes ? 0 : shape.shared_bytes;
  return image.subspan(piece.offset - (piece.offset < shape.manifest_bytes ? 0 : gap), piece.bytes);
}

void check_memory(std::size_t bytes, const Shape& shape) {
  if (bytes == shape.image_bytes || bytes == shape.image_bytes - shape.shared_bytes) return;
  throw InvalidArgument("an image of " + std::to_string(shape.image_bytes) + " bytes, " +
                        std::to_string(shape.shared_bytes) + " of which do not travel, in " +
                        std::to_string(bytes) + " bytes of memory");
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

void check(const Shape& shape) {
  if (shape.block_bytes == 0 || shape.manifest_bytes > shape.image_bytes ||
      shape.image_bytes > kMostBytes) {
    throw InvalidArgument("an image of " + std::to_string(shape.image_bytes) +
                          " bytes with a manifest of " + std::to_string(shape.manifest_bytes) +
                          " in blocks of " + std::to_string(shape.block_bytes) + " makes no sense");
  }
  if (shape.shared_bytes > shape.image_bytes - shape.manifest_bytes) {
    throw InvalidArgument(std::to_string(shape.shared_bytes) + " bytes left out of an image of " +
                          std::to_string(shape.image_bytes) + " make no sense");
  }
}

void check_identity(int from, const ImageInfo& info, const Digest& manifest_digest,
                    const ImageIdentity& expected) {
  if (info.manifest_digest != manifest_digest) {
    throw make_error<CorruptData>(
        "the manifest from rank " + std::to_string(from) + " is not the one that was announced",
        from, expected.id.step);
  }
  if (info.identity != expected) {
    throw make_error<CorruptData>("rank " + std::to_string(from) + " sent " +
                                      to_string(info.identity) + " instead of " +
                                      to_string(expected),
                                  from, expected.id.step);
  }
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
  put(out, start.shape.shared_bytes);
  put(out, std::uint64_t{start.shape.shares});
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
  start.shape.shared_bytes = take<std::uint64_t>(bytes);
  const auto shares = take<std::uint64_t>(bytes);
  if (shares > std::numeric_limits<std::uint32_t>::max()) {
    throw refuse("shares " + std::to_string(shares));
  }
  start.shape.shares = static_cast<std::uint32_t>(shares);
  const auto content = take<std::uint64_t>(bytes);
  if (content > 1) throw refuse("content is " + std::to_string(content));
  start.content = static_cast<Content>(content);
  if (!bytes.empty()) throw refuse("length: " + std::to_string(bytes.size()) + " bytes too many");
  try {
    check(start.shape);
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
    if (storage.bytes == 0 || storage.bytes > kMostBytes - all || length > bytes.size()) {
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

std::vector<Piece> pieces_of(const Shape& shape) {
  check(shape);
  std::vector<Piece> pieces;
  const auto add = [&](std::uint64_t begin, std::uint64_t end) {
    for (std::uint64_t at = begin; at < end; at += shape.block_bytes) {
      pieces.push_back({at, std::min(end - at, shape.block_bytes)});
    }
  };
  if (shape.with_manifest) add(0, shape.manifest_bytes);
  add(shape.manifest_bytes + shape.shared_bytes, shape.image_bytes);
  return pieces;
}

void send_image(const Link& link, std::span<const std::byte> image, const Shape& shape,
                const std::function<void(std::uint64_t)>& wait_final) {
  check_memory(image.size(), shape);
  const auto pieces = pieces_of(shape);
  Window(link).run(
      pieces,
      [&](std::size_t i) {
        wait_final(pieces[i].offset + pieces[i].bytes);
        return link.group.send(link.peer, link.tag, place_of(image, shape, pieces[i]));
      },
      [](std::size_t) {});
}

void drain_image(const Link& link, const Shape& shape) {
  const auto pieces = pieces_of(shape);
  std::uint64_t largest = 0;
  for (const auto& piece : pieces) largest = std::max(largest, piece.bytes);
  std::vector<std::byte> scratch(largest);
  for (const auto& piece : pieces) {
    link.group.receive(link.peer, link.tag, std::span(scratch).first(piece.bytes))
        ->wait(Deadline::after(link.stall));
  }
}

ImageInfo receive_image(const Link& link, std::span<std::byte> image, const Shape& shape,
                        const Digest& manifest_digest, const ImageIdentity& expected) {
  if (image.size() != shape.image_bytes - shape.shared_bytes) {
    throw InvalidArgument("an image of " + std::to_string(shape.image_bytes - shape.shared_bytes) +
                          " bytes is received into " + std::to_string(image.size()));
  }
  const auto pieces = pieces_of(shape);
  // A job may come back with another block size than its images were made with. Then pieces need
  // not be blocks, and the image is digested once it is there.
  const bool whole = shape.shared_bytes == 0;
  const auto digested = digested_bytes(shape);
  const bool by_blocks =
      shape.shared_bytes % shape.block_bytes == 0 && shape.shared_bytes <= digested;
  BlockDigests digests;
  if (by_blocks) {
    digests = BlockDigests(shape.block_bytes, digested, shape.shared_bytes / shape.block_bytes);
  }
  // Blocks are digested while later ones are still on their way. Nothing is judged before every
  // piece has come: the sender's stream must end at a piece's end, whatever is wrong with it.
  Window(link).run(
      pieces,
      [&](std::size_t i) {
        return link.group.receive(link.peer, link.tag, place_of(image, shape, pieces[i]));
      },
      [&](std::size_t i) {
        if (!by_blocks || pieces[i].offset < shape.manifest_bytes) return;
        const auto block = (pieces[i].offset - shape.manifest_bytes) / shape.block_bytes;
        if (block < digests.block_count()) {
          digests.add(block, place_of(image, shape, {pieces[i].offset, digests.block_size(block)}));
        }
      });
  const ImageInfo said = whole ? read_info(image) : read_replica_info(image);
  const ImageInfo info = !by_blocks || said.block_bytes != shape.block_bytes
                             ? (whole ? verify_image(image) : verify_replica(image))
                         : whole ? check_blocks(image, digests)
                                 : check_replica_blocks(image, digests);
  check_identity(link.peer, info, manifest_digest, expected);
  return info;
}

void receive_pieces(const Link& link, std::span<std::byte> image, const Shape& shape) {
  check_memory(image.size(), shape);
  const auto pieces = pieces_of(shape);
  Window(link).run(
      pieces,
      [&](std::size_t i) {
        return link.group.receive(link.peer, link.tag, place_of(image, shape, pieces[i]));
      },
      [](std::size_t) {});
}

ImageInfo prove_image(int from, std::span<const std::byte> image, const Digest& manifest_digest,
                      const ImageIdentity& expected) {
  const ImageInfo info = verify_image(image);
  check_identity(from, info, manifest_digest, expected);
  return info;
}

namespace {

/// The parts of ranges that one piece of their concatenation consists of.
class Concatenation {
 public:
  Concatenation(const std::vector<Piece>& ranges, std::uint64_t image_bytes,
                std::uint64_t block_bytes) {
    std::uint64_t filled = 0;  // of the last piece
    for (const auto& range : ranges) {
      if (range.offset > image_bytes || range.bytes > image_bytes - range.offset) {
        throw InvalidArgument(std::to_string(range.bytes) + " bytes at " +
                              std::to_string(range.offset) + " do not lie in an image of " +
                              std::to_string(image_bytes));
      }
      for (std::uint64_t at = range.offset; at < range.offset + range.bytes;) {
        if (pieces.empty() || filled == block_bytes) {
          pieces.push_back({pieces.size() * block_bytes, 0});
          parts_.emplace_back();
          filled = 0;
        }
        const auto bytes = std::min(range.offset + range.bytes - at, block_bytes - filled);
        parts_.back().push_back({at, bytes});
        pieces.back().bytes = filled += bytes;
        at += bytes;
      }
    }
  }
  std::vector<Piece> pieces;  ///< Of the concatenation.
  [[nodiscard]] const std::vector<Piece>& parts(std::size_t piece) const { return parts_[piece]; }

  /// Memory for a piece of several parts; free again once the piece kWindow before it is done.
  std::span<std::byte> scratch(std::size_t piece) {
    auto& memory = scratch_[piece % kWindow];
    memory.resize(std::max<std::size_t>(memory.size(), pieces[piece].bytes));
    return std::span(memory).first(pieces[piece].bytes);
  }

 private:
  std::vector<std::vector<Piece>> parts_;
  std::array<std::vector<std::byte>, kWindow> scratch_;
};

}  // namespace

void send_ranges(const Link& link, std::span<const std::byte> image,
                 const std::vector<Piece>& ranges, std::uint64_t block_bytes) {
  Concatenation all(ranges, image.size(), block_bytes);
  Window(link).run(
      all.pieces,
      [&](std::size_t i) {
        const auto& parts = all.parts(i);
        if (parts.size() == 1) {
          return link.group.send(link.peer, link.tag,
                                 image.subspan(parts[0].offset, parts[0].bytes));
        }
        const auto scratch = all.scratch(i);
        std::uint64_t at = 0;
        for (const auto& part : parts) {
          std::memcpy(scratch.data() + at, image.data() + part.offset, part.bytes);
          at += part.bytes;
        }
        return link.group.send(link.peer, link.tag, std::span<const std::byte>(scratch));
      },
      [](std::size_t) {});
}

void receive_ranges(const Link& link, std::span<std::byte> image, const std::vector<Piece>& ranges,
                    std::uint64_t block_bytes) {
  Concatenation all(ranges, image.size(), block_bytes);
  Window(link).run(
      all.pieces,
      [&](std::size_t i) {
        const auto& parts = all.parts(i);
        return link.group.receive(
            link.peer, link.tag,
            parts.size() == 1 ? image.subspan(parts[0].offset, parts[0].bytes) : all.scratch(i));
      },
      [&](std::size_t i) {
        const auto& parts = all.parts(i);
        if (parts.size() == 1) return;
        const auto scratch = all.scratch(i);
        std::uint64_t at = 0;
        for (const auto& part : parts) {
          std::memcpy(image.data() + part.offset, scratch.data() + at, part.bytes);
          at += part.bytes;
        }
      });
}

}  // namespace meshstage::exchange
