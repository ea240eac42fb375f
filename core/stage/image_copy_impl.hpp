#pragma once
#include <cstddef>
#include <span>
#include <vector>

#include <meshstage/core/image/layout.hpp>
#include <meshstage/core/stage/device_copies.hpp>
#include <meshstage/core/stage/staging_plan.hpp>

namespace meshstage::detail {

/// The places in an image that devices write: one for each of their segments, in the image's order.
std::vector<DevicePlace> device_places(const ImageLayout& layout, std::span<const Storage> storages,
                                       std::span<std::byte> image);

/// StagingPlan::copy() after its checks: `source` and `image` fit `layout`, and options.devices, if
/// any, has their device_places().
void copy_image(const ImageLayout& layout, const StagingSource& source, std::span<std::byte> image,
                Watermark& progress, const CopyOptions& options);

}  // namespace meshstage::detail
