#pragma once
#include <span>

#include <meshstage/core/stage/staging_plan.hpp>
#include <meshstage/core/tensor/storage.hpp>

namespace meshstage::detail {

/// Copies the bytes of each storage in `from` to the storage with its index in `to`, which has the
/// same size and overlaps no storage of `from`. `how.digests` is not used. Throws the cause of
/// `progress` soon after `progress` was failed, and what a pace throws. Then the targets are torn,
/// and no thread writes them any more.
void copy_storages(std::span<const Storage> from, std::span<const Storage> to, Watermark& progress,
                   const CopyOptions& how);

}  // namespace meshstage::detail
