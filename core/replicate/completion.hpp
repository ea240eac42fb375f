#pragma once
#include <cstddef>
#include <span>

#include <meshstage/core/image/replica.hpp>

namespace meshstage::replicate {

/// Copies what a replica borrows from one lender, `part` of borrowed_parts(), out of that rank's
/// own image of the same step into the memory of the whole image `info`. Throws CorruptData, naming
/// a tensor, if the lender's image does not have it. Afterwards the image is to be verified.
/// Threads: any.
void fill_part(const BorrowedPart& part, std::span<const std::byte> lender, const ImageInfo& info,
               std::span<std::byte> image);

}  // namespace meshstage::replicate
