#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <meshstage/core/error/little_endian.hpp>
#include <meshstage/core/transfer/kept.hpp>

namespace meshstage::transfer {

/// The order in which masks and pieces travel, and the masks themselves.
class Masks {
 public:
  /// A mask, which always travels, or a piece, which travels or stays.
  struct Thing {
    bool is_mask = false;
    std::size_t number = 0;  ///< Of the mask's group, or of the piece.
  };

  /// Without masks every piece travels.
  Masks(std::size_t pieces, bool masked) : pieces_(pieces), masked_(masked) {
    bytes_.resize(masked ? (pieces + kMaskGroup - 1) / kMaskGroup : 0);
  }

  [[nodiscard]] std::size_t things() const { return pieces_ + bytes_.size(); }
  [[nodiscard]] Thing thing(std::size_t i) const {
    if (!masked_) return {false, i};
    const std::size_t group = i / (kMaskGroup + 1), at = i % (kMaskGroup + 1);
    return at == 0 ? Thing{true, group} : Thing{false, group * kMaskGroup + at - 1};
  }
  /// How many things must have come before thing `i` can be received: a piece needs its mask.
  [[nodiscard]] std::size_t needed_for(std::size_t i) const {
    return masked_ && i % (kMaskGroup + 1) != 0 ? i / (kMaskGroup + 1) * (kMaskGroup + 1) + 1 : 0;
  }
  [[nodiscard]] std::size_t begin_of(std::size_t group) const { return group * kMaskGroup; }
  [[nodiscard]] std::size_t end_of(std::size_t group) const {
    return std::min(pieces_, begin_of(group) + kMaskGroup);
  }

  /// The memory that a mask is sent from or received into.
  [[nodiscard]] std::span<std::byte> bytes(std::size_t group) { return bytes_[group]; }
  void set(std::size_t group, std::uint64_t mask) {
    little_endian::store(bytes_[group].data(), mask);
  }
  [[nodiscard]] bool travels(std::size_t piece) const {
    if (!masked_) return true;
    const auto mask = little_endian::load<std::uint64_t>(bytes_[piece / kMaskGroup].data());
    return (mask >> piece % kMaskGroup & 1U) != 0;
  }

 private:
  std::size_t pieces_;
  bool masked_;
  std::vector<std::array<std::byte, 8>> bytes_;
};

}  // namespace meshstage::transfer
