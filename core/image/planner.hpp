#pragma once
#include <vector>

#include <meshstage/core/image/flatten.hpp>
#include <meshstage/core/image/layout.hpp>
#include <meshstage/core/image/safetensors.hpp>

namespace meshstage::detail {

/// The layout before: storages that are still there keep their places.
struct PreviousLayout {
  const ImageLayout& layout;
  const std::vector<WeakStorage>& storages;  ///< By storage index of `layout`.
};

struct LayoutOptions {
  std::uint64_t block_bytes = 0;
  /// Storages of at least so many bytes have pages of their own; 0: no storage has.
  std::uint64_t own_pages_from = 0;
  /// The storages that replicas of the image borrow, by lender.
  const std::vector<LoanNames>& borrowed;
  /// The storages that the image lends, by borrower.
  const std::vector<LoanNames>& lent;
  std::uint64_t max_header_bytes = kMaxHeaderBytes;
};

/// Makes the layout and its manifest. Throws InvalidArgument, naming path and limit, for a manifest
/// that decode_manifest() would refuse. `previous` may be null. It is ignored if either layout
/// borrows storages, or if a storage is on a device.
ImageLayout make_layout(const FlatState& flat, const LayoutOptions& options,
                        const PreviousLayout* previous);

}  // namespace meshstage::detail
