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
/// Older ones, which readers accept: 1, and 2 where an image borrows or lends. They have no
/// word: the page alone says the state.
inline constexpr std::uint32_t kOldestHeaderVersion = 1;
inline constexpr std::uint32_t kBorrowingHeaderVersion = 2;
using HeaderPage = std::array<std::byte, kHeaderBytes>;
/// Where the slot's word lies, outside the digest.
inline constexpr std::size_t kWordAt = kHeaderBytes - 24;

struct SlotHeader {
  SlotState state = SlotState::kEmpty;
  ImageInfo image;
  std::int64_t writer_pid = 0;
  std::uint64_t writer_start_time = 0;
  std::uint64_t epoch = 0;  ///< Of the word.
};

/// The manifest, and behind it whole borrowed blocks, lie within the image.
[[nodiscard]] bool has_sound_sizes(const ImageInfo& image) noexcept;

/// The page with its word. `image.identity.job` has at most kMaxJobBytes bytes.
HeaderPage encode_header(const SlotHeader& header);
/// What the page's last 16 bytes must say: the digest of all before, with the word taken as zero.
[[nodiscard]] Digest header_digest(std::span<const std::byte, kHeaderBytes> page);

/// The word of a mapped page. Its owner and takers change it at the same time, so it is loaded and
/// swapped atomically.
[[nodiscard]] SlotWord load_word(std::span<const std::byte> page) noexcept;
/// Swaps `expected` for `wanted`; otherwise `expected` becomes what is there, and false.
[[nodiscard]] bool swap_word(std::span<std::byte> page, SlotWord& expected,
                             SlotWord wanted) noexcept;

/// Never throws: a page of zeros is an empty slot, one that cannot be trusted an empty slot with
/// `damaged` saying why; one whose word says WRITING may have no identity yet. Capacity is not the
/// header's to know and stays 0.
SlotInfo decode_header(std::span<const std::byte, kHeaderBytes> page);

/// The header of a slot file as it is now, with its capacity. One that is being written looks
/// damaged for a microsecond: it is read again.
SlotInfo read_header(File& file);

}  // namespace meshstage::detail
