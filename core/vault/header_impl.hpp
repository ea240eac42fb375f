#pragma once
// The first page of a slot file. Layout and a worked example: core/vault/README.md.
#include <array>
#include <cstddef>
#include <span>

#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/vault/slot.hpp>
#include <meshstage/core/vault/slot_word.hpp>

namespace meshstage::detail {

inline constexpr std::size_t kHeaderBytes = 4096;
inline constexpr std::uint32_t kHeaderVersion = 3;
/// Older versions, which readers accept: 1, and 2 where an image borrows or lends. Their files have
/// no word: the page alone says the state.
inline constexpr std::uint32_t kOldestHeaderVersion = 1;
inline constexpr std::uint32_t kBorrowingHeaderVersion = 2;
using HeaderPage = std::array<std::byte, kHeaderBytes>;
/// The offset of the slot's word, which the digest does not cover.
inline constexpr std::size_t kWordAt = kHeaderBytes - 24;

struct SlotHeader {
  SlotState state = SlotState::kEmpty;
  ImageInfo image;
  std::int64_t writer_pid = 0;
  std::uint64_t writer_start_time = 0;
  std::uint64_t epoch = 0;  ///< Of the word.
};

/// True if the manifest, and behind it whole borrowed blocks, lie within the image.
[[nodiscard]] bool has_sound_sizes(const ImageInfo& image) noexcept;

/// The page with its word. `image.identity.job` has at most kMaxJobBytes bytes.
HeaderPage encode_header(const SlotHeader& header);
/// The digest that the page's last 16 bytes must have: of all bytes before, with the word taken as
/// zero.
[[nodiscard]] Digest header_digest(std::span<const std::byte, kHeaderBytes> page);

/// The word of a mapped page. Its owner and takers change it at the same time, so it is loaded and
/// swapped atomically.
[[nodiscard]] SlotWord load_word(std::span<const std::byte> page) noexcept;
/// Compare-and-swap of the word. If the word is not `expected`, returns false, and `expected`
/// becomes the present word.
[[nodiscard]] bool swap_word(std::span<std::byte> page, SlotWord& expected,
                             SlotWord wanted) noexcept;

/// Never throws. A page of zeros is an empty slot. A page that cannot be trusted is an empty slot,
/// and `damaged` says why. A page whose word says WRITING may have no identity yet. The header has
/// no capacity, so capacity stays 0.
SlotInfo decode_header(std::span<const std::byte, kHeaderBytes> page);

/// The present header of a slot file, with the file's capacity. A header that is being written
/// looks damaged for a microsecond, so it is read again.
SlotInfo read_header(File& file);

}  // namespace meshstage::detail
