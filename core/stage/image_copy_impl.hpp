#pragma once
#include <cstddef>
#include <span>
#include <vector>

#include <meshstage/core/image/layout.hpp>
#include <meshstage/core/stage/device_copies.hpp>
#include <meshstage/core/stage/staging_plan.hpp>

namespace meshstage::detail {

/// Where devices write in an image: one place for each of their segments, in the image's order.
std::vector<DevicePlace> device_places(const ImageLayout& layout, std::span<const Storage> storages,
                                       std::span<std::byte> image);

/// StagingPlan::copy() of what was checked: `source` fits `layout`, and so does `image`, and
/// options.devices has the device_places() of them, if any.
void copy_image(const ImageLayout& layout, const StagingSource& source, std::span<std::byte> image,
                Watermark& progress, const CopyOptions& options);

}  // namespace meshstage::detail
