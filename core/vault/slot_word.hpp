#pragma once
// The word of a slot: the slot's state, and the epoch of the vault for which the state holds. Pure
// functions; the vault and the explorer in tests/protocol use the same ones. core/vault/README.md
// says who stores the word, and when.
#include <cstdint>
#include <optional>

#include <meshstage/core/vault/slot.hpp>

namespace meshstage::detail {

/// Lies in the header page, outside the page's digest. Only compare-and-swap changes it.
struct SlotWord {
  SlotState state = SlotState::kEmpty;
  /// The vault's epoch when a process last took the slot; 0 in files of an older format. Below
  /// 2^56.
  std::uint64_t epoch = 0;
  friend bool operator==(const SlotWord&, const SlotWord&) = default;
};

inline constexpr std::uint64_t kLastEpoch = (std::uint64_t{1} << 56U) - 1;

[[nodiscard]] constexpr std::uint64_t pack(SlotWord word) noexcept {
  return word.epoch << 8U | static_cast<std::uint64_t>(word.state);
}
[[nodiscard]] constexpr SlotWord unpack(std::uint64_t bits) noexcept {
  return {static_cast<SlotState>(bits & 0xffU), bits >> 8U};
}

/// An owner that took the vault in epoch `owned` makes this of the word `there` before it writes
/// the first byte. Nothing if another process took the vault since (the owner is fenced).
[[nodiscard]] constexpr std::optional<SlotWord> begun(SlotWord there,
                                                      std::uint64_t owned) noexcept {
  if (there.epoch != owned) return std::nullopt;
  return SlotWord{SlotState::kWriting, owned};
}
/// The same owner makes this of the word after the last byte. An owner seals only what it has begun
/// itself.
[[nodiscard]] constexpr std::optional<SlotWord> sealed(SlotWord there,
                                                       std::uint64_t owned) noexcept {
  if (there != SlotWord{SlotState::kWriting, owned}) return std::nullopt;
  return SlotWord{SlotState::kSealed, owned};
}
/// A taker in epoch `epoch` makes this of the word before it reads the header: the state stays, and
/// from then on no owner of a lower epoch begins or seals. Nothing if the vault was taken in a
/// higher epoch: then the taker is fenced.
[[nodiscard]] constexpr std::optional<SlotWord> taken(SlotWord there,
                                                      std::uint64_t epoch) noexcept {
  if (there.epoch > epoch) return std::nullopt;
  return SlotWord{there.state, epoch};
}

}  // namespace meshstage::detail
