#include <meshstage/core/replicate/completion.hpp>

#include <string>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/fast_copy.hpp>

namespace meshstage::replicate {

void fill_part(const BorrowedPart& part, std::span<const std::byte> lender, const ImageInfo& info,
               std::span<std::byte> image) {
  std::vector<std::string> names;
  for (const auto& piece : part.pieces) names.push_back(piece.name);
  const auto ranges = find_ranges(lender, names);
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    const auto& piece = part.pieces[i];
    if (!ranges[i] || ranges[i]->bytes != piece.bytes) {
      throw make_error<CorruptData>("rank " + std::to_string(part.rank) + " has no " + piece.name +
                                        " of " + std::to_string(piece.bytes) +
                                        " bytes to lend to the replica of rank " +
                                        std::to_string(info.identity.rank),
                                    info.identity.rank, info.identity.id.step, piece.name);
    }
    fast_copy(image.subspan(piece.offset, piece.bytes),
              lender.subspan(ranges[i]->offset, piece.bytes));
  }
}

}  // namespace meshstage::replicate
