#pragma once
#include <iosfwd>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/sharded/shard.hpp>
#include <meshstage/sharded/sharding_spec.hpp>

namespace meshstage {

/// The description of a ShardedTensor, equal on every rank of its group: everything but the
/// elements.
struct MESHSTAGE_API ShardedTensorMetadata {
  Shape shape;  ///< Of the whole tensor, elements.
  DType dtype = DType::kF32;
  std::vector<ShardMetadata> shards;  ///< By rank, then in the order in which the rank gave them.
  friend bool operator==(const ShardedTensorMetadata&, const ShardedTensorMetadata&) = default;
};

/// A tensor in blocks on the ranks of a group, like PyTorch's ShardedTensor. The blocks together
/// are the whole tensor; a rank may have several, or none.
///
/// A handle: copies share the shards; the metadata never changes. Threads: see Tensor. Calls that
/// take a group are collective over it. They pass on the errors of Transfer::wait, which come by
/// `deadline` at the latest; then the group is of no more use.
class MESHSTAGE_API ShardedTensor {
 public:
  /// Makes a ShardedTensor: each rank gives its own shards (of one dtype; tensors of any strides),
  /// and all give the same shape of the whole. All ranks gather every rank's metadata and make the
  /// same checks. Shards must lie within the whole, must not overlap, and must leave no gap. Their
  /// tensors must have the shards' sizes and one dtype, and each shard's placement must name the
  /// rank that gives it.
  /// A mistake of one rank gives the same InvalidArgument on every rank. It names the rank and the
  /// shard (by its place among that rank's shards), and rank() is that rank. Uses only links of the
  /// control tree.
  [[nodiscard]] static ShardedTensor init_from_local_shards(std::vector<Shard> shards,
                                                            const Shape& shape, ProcessGroup& group,
                                                            Deadline deadline);
  /// The part of `rank`, without communication. `tensors` are the tensors of the metadata's shards
  /// that are placed on `rank`, in the shards' order. Throws InvalidArgument if they do not fit.
  [[nodiscard]] static ShardedTensor from_metadata(std::vector<Tensor> tensors,
                                                   ShardedTensorMetadata metadata, int rank);

  /// The shards of this rank. In a replica their placement names the holder, on the CPU.
  [[nodiscard]] const std::vector<Shard>& local_shards() const noexcept { return local_; }
  /// The metadata of all shards of all ranks; in a replica too, with the owners' placements.
  [[nodiscard]] const ShardedTensorMetadata& metadata() const noexcept { return *metadata_; }
  [[nodiscard]] const Shape& shape() const noexcept { return metadata_->shape; }
  [[nodiscard]] DType dtype() const noexcept { return metadata_->dtype; }
  /// The rank whose shards these are: for a replica, the owner, not the holder.
  [[nodiscard]] int owner() const noexcept { return owner_; }
  /// The rank whose process has these shards.
  [[nodiscard]] int holder() const noexcept { return holder_; }
  /// The same shards as a replica that `holder` has.
  [[nodiscard]] ShardedTensor held_by(int holder) const;

  /// The same shards with other tensors of the same dtype and sizes, for example staged copies.
  [[nodiscard]] ShardedTensor with_tensors(std::vector<Tensor> tensors) const;

  /// The whole tensor at `root`, row-major; other ranks get an undefined tensor. Memory: the whole
  /// tensor and at most one shard. The root must be linked to the ranks that have shards. CPU only.
  [[nodiscard]] Tensor gather(ProcessGroup& group, int root, Deadline deadline) const;
  /// The same tensor in other shards, which have memory of their own. Elements travel directly from
  /// the rank that has them to the one that needs them. Memory, beside this tensor: the new shards
  /// and at most one shard. CPU only. Throws what shards_of() throws, on every rank, before
  /// anything is sent.
  [[nodiscard]] ShardedTensor reshard(const ShardingSpec& spec, ProcessGroup& group,
                                      Deadline deadline) const;

  /// "ShardedTensor(F32[8, 4] in 4 shards; rank 1 has 2)".
  [[nodiscard]] std::string to_string() const;

 private:
  ShardedTensor(std::vector<Shard> local, std::shared_ptr<const ShardedTensorMetadata> metadata,
                int owner, int holder)
      : local_(std::move(local)), metadata_(std::move(metadata)), owner_(owner), holder_(holder) {}
  std::vector<Shard> local_;
  std::shared_ptr<const ShardedTensorMetadata> metadata_;
  int owner_ = 0;
  int holder_ = 0;
};

MESHSTAGE_API std::ostream& operator<<(std::ostream& out, const ShardedTensor& tensor);

}  // namespace meshstage
