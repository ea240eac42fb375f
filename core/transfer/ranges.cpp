#include <meshstage/core/transfer/ranges.hpp>

#include <algorithm>
#include <cstring>
#include <string>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/transfer/moving_impl.hpp>

namespace meshstage::transfer {
namespace {

/// The parts of ranges that one piece of their concatenation consists of.
class Concatenation {
 public:
  /// `places`: of scratch memory.
  Concatenation(const std::vector<Piece>& ranges, std::uint64_t image_bytes,
                std::uint64_t block_bytes, std::size_t places)
      : scratch_(places) {
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

  /// Memory for a piece of several parts, at a place that no piece in flight has.
  std::span<std::byte> scratch(std::size_t piece, std::size_t place) {
    auto& memory = scratch_[place];
    memory.resize(std::max<std::size_t>(memory.size(), pieces[piece].bytes));
    return std::span(memory).first(pieces[piece].bytes);
  }

 private:
  std::vector<std::vector<Piece>> parts_;
  std::vector<std::vector<std::byte>> scratch_;
};

}  // namespace

void send_ranges(const Link& link, std::span<const std::byte> image,
                 const std::vector<Piece>& ranges, std::uint64_t block_bytes) {
  Concatenation all(ranges, image.size(), block_bytes, places(link));
  const auto source = [&](std::size_t i, std::size_t place) -> std::span<const std::byte> {
    const auto& parts = all.parts(i);
    if (parts.size() == 1) return image.subspan(parts[0].offset, parts[0].bytes);
    const auto scratch = all.scratch(i, place);
    std::uint64_t at = 0;
    for (const auto& part : parts) {
      std::memcpy(scratch.data() + at, image.data() + part.offset, part.bytes);
      at += part.bytes;
    }
    return scratch;
  };
  send(link, {all.pieces.size(), {}, source});
}

void receive_ranges(const Link& link, std::span<std::byte> image, const std::vector<Piece>& ranges,
                    std::uint64_t block_bytes) {
  Concatenation all(ranges, image.size(), block_bytes, places(link));
  const auto target = [&](std::size_t i, std::size_t place) {
    const auto& parts = all.parts(i);
    return parts.size() == 1 ? image.subspan(parts[0].offset, parts[0].bytes)
                             : all.scratch(i, place);
  };
  const auto came = [&](std::size_t i, std::size_t place) {
    const auto& parts = all.parts(i);
    if (parts.size() == 1) return;
    const auto scratch = all.scratch(i, place);
    std::uint64_t at = 0;
    for (const auto& part : parts) {
      std::memcpy(image.data() + part.offset, scratch.data() + at, part.bytes);
      at += part.bytes;
    }
  };
  receive(link, {all.pieces.size(), target, came, {}});
}

}  // namespace meshstage::transfer
