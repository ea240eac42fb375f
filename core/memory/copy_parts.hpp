#pragma once
#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/core/memory/fast_copy.hpp>

namespace meshstage {

/// Copies of many ranges, cut into parts for several threads: large ranges into pieces, and small
/// ranges together into one part.
///
///     CopyParts parts;
///     for (const auto& [target, source] : copies) parts.add(target);
///     parts.run(&crew, 0, [&](const CopyParts::Piece& piece) {
///       const auto& [target, source] = copies[piece.range];
///       fast_copy(piece.of(target), piece.of(source), piece.hint);
///     });
///
/// Threads: one owns it.
class MESHSTAGE_API CopyParts {
 public:
  /// Bytes of a range, to be copied by one call. Pieces of a large range end where a huge page of
  /// its target does, so that no two threads touch a fresh page first.
  struct Piece {
    std::size_t range;  ///< The number of the add().
    std::size_t offset, bytes;
    CopyHint hint;  ///< For the copy.

    /// The piece's bytes of the range's target, or of its source.
    template <class Byte>
    [[nodiscard]] std::span<Byte> of(std::span<Byte> whole) const {
      return whole.subspan(offset, bytes);
    }
  };

  /// Adds the next range by its target, of which only address and size count.
  void add(std::span<const std::byte> target);
  /// Bytes of all ranges.
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

  /// Whether the ranges together are larger than a cache, so that several threads copy faster.
  [[nodiscard]] bool is_large() const noexcept;

  /// Calls `copy` once for each piece: if is_large() by at most `hands` threads of `crew` (0: all),
  /// else, or with null `crew`, in order by the calling thread.
  /// Throws what `copy` throws, once (Crew::run()).
  void run(Crew* crew, unsigned hands, const std::function<void(const Piece&)>& copy) const;

 private:
  std::vector<Piece> pieces_;
  std::vector<std::size_t> ends_;  // behind the last piece of each part, but for the part begun
  std::size_t ranges_ = 0, bytes_ = 0, in_part_ = 0;
};

}  // namespace meshstage
