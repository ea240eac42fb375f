#pragma once
// Images of tensors on a device: what the tests of plans share.
#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <meshstage/core/image/image.hpp>
#include <meshstage/core/stage/staging_plan.hpp>

#include "tests/device/cuda_support.hpp"

namespace meshstage::device_images {

inline constexpr PlanOptions kSmallBlocks{.block_bytes = 4096};

inline const Tensor& tensor(const Value& v, const char* key) { return v.at(key).as<Tensor>(); }

inline std::vector<std::byte> pattern(std::size_t bytes, unsigned first) {
  std::vector<std::byte> result(bytes);
  for (std::size_t i = 0; i < bytes; ++i) result[i] = static_cast<std::byte>((first + i) % 253);
  return result;
}

inline bool all_are(std::span<const std::byte> bytes, unsigned value) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [&](std::byte b) { return std::to_integer<unsigned>(b) == value; });
}

inline std::span<const std::byte> bytes_of(const Value& decoded, const char* key) {
  return tensor(decoded, key).storage().bytes();
}

// A plan's image in page-locked memory, or not, with all that makes one.
class Image {
 public:
  explicit Image(const StagingPlan& plan, bool pinned = true)
      : plan_(plan), pages_(std::make_shared<test::HostPages>(plan.layout().image_bytes, pinned)) {}
  [[nodiscard]] std::span<std::byte> bytes() const {
    return pages_->all().first(plan_.layout().image_bytes);
  }
  [[nodiscard]] const std::shared_ptr<test::HostPages>& memory() const { return pages_; }
  // What must live until the devices have copied `source` here.
  [[nodiscard]] std::shared_ptr<const void> both_ends(
      std::shared_ptr<const StagingSource> source) const {
    return std::make_shared<
        const std::pair<std::shared_ptr<const StagingSource>, std::shared_ptr<test::HostPages>>>(
        std::move(source), pages_);
  }
  // copy() and seal(), with digests made by the copy or behind it.
  ImageInfo make(const StagingSource& source, CopyOptions how, bool fused) {
    const ImageIdentity who{.job = "job", .rank = 0, .world_size = 1, .id = {1, 1}, .base = {}};
    plan_.write_manifest(bytes());
    if (!fused) {
      plan_.copy(source, bytes(), progress, how);
      return plan_.seal(who, bytes(), progress);
    }
    auto digests = plan_.block_digests();
    how.digests = &digests;
    plan_.copy(source, bytes(), progress, how);
    return plan_.seal(who, bytes(), progress, digests);
  }
  [[nodiscard]] Value decoded() const {
    static_cast<void>(verify_image(bytes()));
    return decode_image(bytes(), pages_);
  }
  Watermark progress;

 private:
  const StagingPlan& plan_;
  std::shared_ptr<test::HostPages> pages_;
};

}  // namespace meshstage::device_images
