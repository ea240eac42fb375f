#include <meshstage/core/replicate/exchange.hpp>

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <string>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/image.hpp>

namespace meshstage::exchange {
namespace {

constexpr std::uint32_t kMagic = 0x5850534DU;         // "MSPX"
constexpr std::uint32_t kPresentMagic = 0x5050534DU;  // "MSPP"
constexpr std::uint16_t kVersion = 2;
constexpr std::size_t kStartBytes = 8 + 9 * 8;
constexpr std::size_t kPresentBytes = 8 + 4 * 8;
constexpr std::size_t kRangeBytes = 16;
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
std::uint64_t digested_bytes(std::uint64_t data_bytes, std::uint64_t block_bytes) {
  std::uint64_t digested = data_bytes;
  for (int round = 0; round < 4; ++round) {
    const std::uint64_t trailer = trailer_size(digested, block_bytes);
    if (trailer > data_bytes) throw CorruptData("an image too small for its trailer");
    digested = data_bytes - trailer;
  }
  return digested;
}

void put(std::vector<std::byte>& out, const std::vector<Piece>& ranges) {
  put(out, std::uint64_t{ranges.size()});
  for (const auto& range : ranges) {
    put(out, range.offset);
    put(out, range.bytes);
  }
}

/// The ranges at the end of a message; `refuse` makes its error.
template <class Refuse>
std::vector<Piece> take_ranges(std::span<const std::byte>& in, const Refuse& refuse) {
  const auto count = take<std::uint64_t>(in);
  if (count > kMostPresent || in.size() != count * kRangeBytes) {
    throw refuse(std::to_string(count) + " ranges in " + std::to_string(in.size()) + " bytes");
  }
  std::vector<Piece> ranges(count);
  for (auto& range : ranges) {
    range.offset = take<std::uint64_t>(in);
    range.bytes = take<std::uint64_t>(in);
  }
  return ranges;
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
  if (!shape.present.empty() && !fits(shape.present, shape)) {
    throw InvalidArgument("what is present does not fit an image of " +
                          std::to_string(shape.image_bytes) + " bytes");
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
  put(out, start.shape.present);
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
  start.shape.present = take_ranges(bytes, refuse);
  try {
    check(start.shape);
  } catch (const InvalidArgument& e) {
    throw refuse(e.what());
  }
  return start;
}

std::vector<std::byte> encode(const Present& present) {
  std::vector<std::byte> out;
  out.reserve(kPresentBytes + present.ranges.size() * kRangeBytes);
  put(out, kPresentMagic);
  put(out, kVersion);
  put(out, std::uint16_t{0});
  put(out, present.generation);
  put(out, present.id.generation);
  put(out, present.id.step);
  put(out, present.ranges);
  return out;
}

bool is_present(std::span<const std::byte> bytes) noexcept {
  return begins_with(bytes, kPresentMagic);
}

Present decode_present(std::span<const std::byte> bytes, int from) {
  const auto refuse = [from](const std::string& what) -> CorruptData {
    return make_error<CorruptData>("ranges present from rank " + std::to_string(from) + ": " + what,
                                   from);
  };
  take_head(bytes, is_present(bytes), kPresentBytes, refuse);
  Present present;
  present.generation = take<std::uint64_t>(bytes);
  present.id.generation = take<std::uint64_t>(bytes);
  present.id.step = take<std::uint64_t>(bytes);
  present.ranges = take_ranges(bytes, refuse);
  return present;
}

bool fits(const std::vector<Piece>& ranges, const Shape& shape) {
  const std::uint64_t data_bytes = shape.image_bytes - shape.manifest_bytes;
  const std::uint64_t end = shape.manifest_bytes + digested_bytes(data_bytes, shape.block_bytes);
  std::uint64_t at = shape.manifest_bytes;
  for (const auto& range : ranges) {
    if (range.bytes == 0 || range.offset < at || range.offset > end ||
        range.bytes > end - range.offset) {
      return false;
    }
    at = range.offset + range.bytes;
  }
  return ranges.size() <= kMostPresent;
}

std::vector<Piece> pieces_of(const Shape& shape) {
  check(shape);
  std::vector<Piece> pieces;
  auto present = shape.present.begin();
  const auto add = [&](std::uint64_t begin, std::uint64_t end) {
    for (std::uint64_t block = begin; block < end; block += shape.block_bytes) {
      const std::uint64_t block_end = std::min(end, block + shape.block_bytes);
      for (std::uint64_t at = block; at < block_end;) {
        while (present != shape.present.end() && present->offset + present->bytes <= at) ++present;
        const bool any = present != shape.present.end();
        if (any && present->offset <= at) {
          at = present->offset + present->bytes;
          continue;
        }
        const std::uint64_t until = any ? std::min(block_end, present->offset) : block_end;
        pieces.push_back({at, until - at});
        at = until;
      }
    }
  };
  if (shape.with_manifest) add(0, shape.manifest_bytes);
  add(shape.manifest_bytes, shape.image_bytes);
  return pieces;
}

void send_image(const Link& link, std::span<const std::byte> image, const Shape& shape,
                const std::function<void(std::uint64_t)>& wait_final) {
  const auto pieces = pieces_of(shape);
  Window(link).run(
      pieces,
      [&](std::size_t i) {
        wait_final(pieces[i].offset + pieces[i].bytes);
        return link.group.send(link.peer, link.tag,
                               image.subspan(pieces[i].offset, pieces[i].bytes));
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
  if (!shape.present.empty()) throw InvalidArgument("an image of which a part is present");
  const auto pieces = pieces_of(shape);
  const std::uint64_t data_bytes = shape.image_bytes - shape.manifest_bytes;
  BlockDigests digests(shape.block_bytes, digested_bytes(data_bytes, shape.block_bytes));
  // Blocks are digested while later ones are still on their way. Nothing is judged before every
  // piece has come: the sender's stream must end at a piece's end, whatever is wrong with it.
  Window(link).run(
      pieces,
      [&](std::size_t i) {
        return link.group.receive(link.peer, link.tag,
                                  image.subspan(pieces[i].offset, pieces[i].bytes));
      },
      [&](std::size_t i) {
        if (pieces[i].offset < shape.manifest_bytes) return;
        const auto block = (pieces[i].offset - shape.manifest_bytes) / shape.block_bytes;
        if (block < digests.block_count()) {
          digests.add(block, image.subspan(pieces[i].offset, digests.block_size(block)));
        }
      });
  // A job may come back with another block size than its images were made with.
  const bool same_blocks = read_info(image).block_bytes == shape.block_bytes;
  const ImageInfo info = same_blocks ? check_blocks(image, digests) : verify_image(image);
  check_identity(link.peer, info, manifest_digest, expected);
  return info;
}

void receive_pieces(const Link& link, std::span<std::byte> image, const Shape& shape) {
  const auto pieces = pieces_of(shape);
  Window(link).run(
      pieces,
      [&](std::size_t i) {
        return link.group.receive(link.peer, link.tag,
                                  image.subspan(pieces[i].offset, pieces[i].bytes));
      },
      [](std::size_t) {});
}

ImageInfo prove_image(int from, std::span<const std::byte> image, const Digest& manifest_digest,
                      const ImageIdentity& expected) {
  const ImageInfo info = verify_image(image);
  check_identity(from, info, manifest_digest, expected);
  return info;
}

}  // namespace meshstage::exchange
