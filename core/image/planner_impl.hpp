#pragma once
#include <vector>

#include <meshstage/core/image/flatten_impl.hpp>
#include <meshstage/core/image/layout.hpp>

namespace meshstage::detail {

/// What was laid out before, so that what stayed keeps its place.
struct PreviousLayout {
  const ImageLayout& layout;
  const std::vector<WeakStorage>& storages;  ///< By storage index of that layout.
};

/// Where everything goes, and the manifest that says so. `previous` may be null.
ImageLayout make_layout(const FlatState& flat, std::uint64_t block_bytes,
                        const PreviousLayout* previous);

}  // namespace meshstage::detail
