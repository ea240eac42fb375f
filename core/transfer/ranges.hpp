#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <meshstage/core/transfer/pieces.hpp>

namespace meshstage::transfer {

/// Sends ranges of an image, or receives into them, one behind the other in pieces of
/// `block_bytes`. Both ends must have agreed on the sizes of the ranges. Throws InvalidArgument for
/// a range outside the image, or what Transfer::wait throws.
void send_ranges(const Link& link, std::span<const std::byte> image,
                 const std::vector<Piece>& ranges, std::uint64_t block_bytes);
void receive_ranges(const Link& link, std::span<std::byte> image, const std::vector<Piece>& ranges,
                    std::uint64_t block_bytes);

}  // namespace meshstage::transfer
