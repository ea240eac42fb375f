#pragma once
#include <span>

#include <meshstage/core/stage/staging_plan.hpp>
#include <meshstage/core/tensor/storage.hpp>

namespace meshstage::detail {

/// Copies the bytes of each of `from` to the storage at its index in `to`, which is as large and
/// overlaps none of `from`. `how.digests` is not used. Throws the cause of `progress` soon after it
/// was failed, and what a pace throws; then the targets are torn, and no thread writes them any
/// more.
void copy_storages(std::span<const Storage> from, std::span<const Storage> to, Watermark& progress,
                   const CopyOptions& how);

}  // namespace meshstage::detail
