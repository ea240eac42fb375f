#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include <meshstage/core/async/mutex.hpp>

namespace meshstage::detail {

/// The pieces of host memory that are page-locked. No copy may span the edge of a piece. Threads:
/// any.
class PinnedRanges {
 public:
  /// A part of one piece, or of memory that is in no piece.
  struct Part {
    std::byte* begin = nullptr;
    std::uint64_t bytes = 0;
    std::uint64_t address = 0;  ///< Address of the first byte for kernels; 0 if it is in no piece.
    [[nodiscard]] bool pinned() const noexcept { return address != 0; }
  };

  /// `address` is the address of the first byte for kernels. Pieces do not overlap.
  void add(std::span<std::byte> piece, std::uint64_t address);
  void remove(std::span<std::byte> piece);
  /// True if all of `bytes` lie in pieces.
  [[nodiscard]] bool contains(std::span<const std::byte> bytes) const;
  /// `bytes` as one part, if they lie in one piece: what parts() says then, without a vector.
  [[nodiscard]] std::optional<Part> in_one_piece(std::span<const std::byte> bytes) const;
  /// Divides `bytes` into parts, ascending and without holes: each part lies in one piece, or in
  /// none.
  [[nodiscard]] std::vector<Part> parts(std::span<const std::byte> bytes) const;

 private:
  struct Piece {
    std::uint64_t bytes;
    std::uint64_t address;
  };
  mutable Mutex mutex_;
  std::map<const std::byte*, Piece> pieces_ MESHSTAGE_GUARDED_BY(mutex_);  // by begin
};

}  // namespace meshstage::detail
