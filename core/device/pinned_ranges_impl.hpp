#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

namespace meshstage::detail {

/// Which host memory is page-locked, and in which pieces: no copy may span the edge of one.
/// Threads: any.
class PinnedRanges {
 public:
  /// A part of one piece, or of memory that is in none.
  struct Part {
    std::byte* begin = nullptr;
    std::uint64_t bytes = 0;
    std::uint64_t address = 0;  ///< Of its first byte, for kernels; 0 if it is in no piece.
    [[nodiscard]] bool pinned() const noexcept { return address != 0; }
  };

  /// `address` is the first byte's for kernels. Pieces do not overlap.
  void add(std::span<std::byte> piece, std::uint64_t address);
  void remove(std::span<std::byte> piece);
  /// All of it lies in pieces.
  [[nodiscard]] bool contains(std::span<const std::byte> bytes) const;
  /// Ascending and without holes: each part lies in one piece, or in none.
  [[nodiscard]] std::vector<Part> parts(std::span<const std::byte> bytes) const;

 private:
  struct Piece {
    std::uint64_t bytes;
    std::uint64_t address;
  };
  mutable std::mutex mutex_;
  std::map<const std::byte*, Piece> pieces_;  // by begin
};

}  // namespace meshstage::detail
