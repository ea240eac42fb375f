#pragma once
#include <vector>

#include <meshstage/core/image/flatten.hpp>
#include <meshstage/core/image/layout.hpp>
#include <meshstage/core/image/safetensors.hpp>

namespace meshstage::detail {

/// What was laid out before, so that what stayed keeps its place.
struct PreviousLayout {
  const ImageLayout& layout;
  const std::vector<WeakStorage>& storages;  ///< By storage index of that layout.
};

struct LayoutOptions {
  std::uint64_t block_bytes = 0;
  /// Storages of at least so many bytes share no page with others; 0: none of them.
  std::uint64_t own_pages_from = 0;
  /// What replicas of the image borrow, by lender.
  const std::vector<LoanNames>& borrowed;
  /// What the image lends, by borrower.
  const std::vector<LoanNames>& lent;
  std::uint64_t max_header_bytes = kMaxHeaderBytes;
};

/// Where everything goes, and the manifest that says so. Throws InvalidArgument, naming path and
/// limit, for what decode_manifest() would refuse. `previous` may be null, and does not count
/// where it or the new layout borrows storages, or any is on a device.
ImageLayout make_layout(const FlatState& flat, const LayoutOptions& options,
                        const PreviousLayout* previous);

}  // namespace meshstage::detail
