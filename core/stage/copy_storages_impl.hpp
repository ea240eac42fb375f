#pragma once
#include <span>

#include <meshstage/core/stage/pace.hpp>
#include <meshstage/core/tensor/storage.hpp>

namespace meshstage::detail {

/// Copies the bytes of each of `from` to the storage at its index in `to`, which is as large and
/// overlaps none of `from`. `pace`, if any, is asked before each piece. Throws the cause of
/// `progress` soon after it was failed; then the targets are torn.
void copy_storages(std::span<const Storage> from, std::span<const Storage> to, Watermark& progress,
                   Pace* pace);

}  // namespace meshstage::detail
