#pragma once
// The first page of a slot file. Layout and a worked example: core/vault/README.md.
#include <array>
#include <cstddef>
#include <span>

#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/vault/slot.hpp>

namespace meshstage::detail {

inline constexpr std::size_t kHeaderBytes = 4096;
/// Readers accept both. The second is written where an image borrows or lends.
inline constexpr std::uint32_t kHeaderVersion = 1;
inline constexpr std::uint32_t kBorrowingHeaderVersion = 2;
using HeaderPage = std::array<std::byte, kHeaderBytes>;

struct SlotHeader {
  SlotState state = SlotState::kEmpty;
  ImageInfo image;
  std::int64_t writer_pid = 0;
  std::uint64_t writer_start_time = 0;
};

/// The manifest, and behind it whole borrowed blocks, lie within the image.
[[nodiscard]] bool has_sound_sizes(const ImageInfo& image) noexcept;

/// `image.identity.job` has at most kMaxJobBytes bytes.
HeaderPage encode_header(const SlotHeader& header);

/// Never throws: a page of zeros is an empty slot, one that cannot be trusted an empty slot with
/// `damaged` saying why. Capacity is not the header's to know and stays 0.
SlotInfo decode_header(std::span<const std::byte, kHeaderBytes> page);

/// The header of a slot file as it is now, with its capacity. One that is being written looks
/// damaged for a microsecond: it is read again.
SlotInfo read_header(File& file);

}  // namespace meshstage::detail
