#pragma once
#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/device/device.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/core/tensor/tensor.hpp>

namespace meshstage {

/// The rank and device that have a shard: "rank:1/cuda:0", "rank:0/cpu". The rank is a rank of the
/// group.
struct ShardPlacement {
  int rank = 0;
  Device device = kCpu;
  friend bool operator==(const ShardPlacement&, const ShardPlacement&) = default;
};
[[nodiscard]] MESHSTAGE_API std::string to_string(const ShardPlacement& placement);
/// The inverse of to_string(). Throws InvalidArgument; the message shows the valid forms.
[[nodiscard]] MESHSTAGE_API ShardPlacement parse_shard_placement(std::string_view text);

/// A block of a tensor, in elements, and the block's placement.
struct ShardMetadata {
  std::vector<std::int64_t> offsets;  ///< Of the first element, in the whole tensor.
  std::vector<std::int64_t> sizes;
  ShardPlacement placement;
  friend bool operator==(const ShardMetadata&, const ShardMetadata&) = default;
};
/// "[2, 3] at [4, 0] on rank:1/cuda:0".
[[nodiscard]] MESHSTAGE_API std::string to_string(const ShardMetadata& shard);
MESHSTAGE_API std::ostream& operator<<(std::ostream& out, const ShardMetadata& shard);

/// A shard with its elements: the tensor has metadata.sizes as its shape.
struct Shard {
  Tensor tensor;
  ShardMetadata metadata;
};

}  // namespace meshstage
