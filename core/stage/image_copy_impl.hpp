#pragma once
#include <cstddef>
#include <span>

#include <meshstage/core/image/layout.hpp>
#include <meshstage/core/stage/staging_plan.hpp>

namespace meshstage::detail {

/// StagingPlan::copy() of what was checked: `source` fits `layout`, and so does `image`.
void copy_image(const ImageLayout& layout, const StagingSource& source, std::span<std::byte> image,
                Watermark& progress, const CopyOptions& options);

}  // namespace meshstage::detail
