#include <meshstage/core/transfer/ranges.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/transfer/window_impl.hpp>

namespace meshstage::transfer {
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

}  // namespace meshstage::transfer
