#pragma once
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <meshstage/core/image/flatten.hpp>
#include <meshstage/core/image/layout.hpp>
#include <meshstage/core/stage/digested_blocks.hpp>
#include <meshstage/core/stage/staging_plan.hpp>

namespace meshstage::detail {

/// A distinct tensor object of a plan. `identity` is not reused while `hold` exists.
struct PlannedTensor {
  DType dtype = DType::kU8;
  Shape shape;
  Strides strides;
  Device device;
  std::int64_t source_offset = 0;  ///< In the state dict; `source` is its storage there.
  std::uint32_t source = 0;
  std::int64_t offset = 0;  ///< In the image; `storage` is its storage there.
  std::uint32_t storage = 0;
  const void* identity = nullptr;
  std::weak_ptr<const void> hold;
};

/// The parts of a state dict that its plan remembers. Keeps no tensor alive.
struct PlannedState {
  std::vector<FlatItem> items;
  std::vector<Key> keys;
  std::vector<FlatNode> nodes;
  std::vector<PlannedTensor> tensors;
  std::vector<std::size_t> source_bytes;
  std::vector<const std::byte*> source_begins;  ///< As the driver knows them, on a device.
  std::vector<GroupPlace> places;               ///< By source.
  std::vector<std::size_t> storage_bytes;
  std::vector<WeakStorage> storages;
  std::vector<const void*> containers;
  std::vector<std::weak_ptr<const void>> holds;
};

PlannedState remember(FlatState flat);

/// Walks `state` along the plan. Nothing if they differ. The source's `values` has only the stream.
std::optional<StagingSource> match(const PlannedState& plan, const Value& state);

/// `state`, which match() found to be as planned, with `tensors[i]` in the place of the plan's
/// tensor i; containers and nodes are new.
Value replace_tensors(const PlannedState& plan, const Value& state,
                      std::span<const Tensor> tensors);

}  // namespace meshstage::detail

namespace meshstage {

struct StagingPlan::Impl {
  ImageLayout layout;
  std::uint64_t own_pages_from = 0;
  detail::PlannedState state;
  /// Segments by storage index.
  std::vector<const ImageSegment*> segments;
  mutable detail::KeptBlocks digested;
};

}  // namespace meshstage
