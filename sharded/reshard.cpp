// gather() and reshard(): all ranks know where every shard is, so each works out by itself what it
// sends to whom.
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/block_exchange.hpp>
#include <meshstage/sharded/sharded_tensor.hpp>

namespace meshstage {
namespace {

blocks::Block block_of(const ShardMetadata& shard) { return {shard.sizes, shard.offsets}; }

void check_use(const ShardedTensor& tensor, const ProcessGroup& group, const char* call) {
  if (tensor.holder() != tensor.owner() || group.rank() != tensor.owner()) {
    throw InvalidArgument(std::string(call) + " of the shards of rank " +
                          std::to_string(tensor.owner()) + ", held by rank " +
                          std::to_string(tensor.holder()) + ", was called as rank " +
                          std::to_string(group.rank()) + " of its group");
  }
  for (const ShardMetadata& s : tensor.metadata().shards) {
    if (s.placement.rank >= group.size()) {
      throw InvalidArgument(std::string(call) + ": rank " + std::to_string(s.placement.rank) +
                            " has a shard, but the group only " + std::to_string(group.size()) +
                            " ranks");
    }
  }
  for (const Shard& s : tensor.local_shards()) {
    if (!s.tensor.device().is_cpu()) {
      throw InvalidArgument(std::string(call) + " moves elements of CPU tensors only; a shard is " +
                            "on " + to_string(s.tensor.device()) + ". Copy it to the CPU first");
    }
  }
}

/// The calling rank's tensors of all shards that are its own; the others' are undefined. In the
/// order of `shards`.
std::vector<Tensor> spread(const std::vector<ShardMetadata>& shards, int rank,
                           const std::vector<Tensor>& own) {
  std::vector<Tensor> tensors(shards.size());
  std::size_t next = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    if (shards[i].placement.rank == rank) tensors[i] = own[next++];
  }
  return tensors;
}

std::vector<Tensor> tensors_of(const std::vector<Shard>& shards) {
  std::vector<Tensor> tensors;
  for (const Shard& s : shards) tensors.push_back(s.tensor);
  return tensors;
}

/// Moves every element from where it is to where it is wanted. Pairs are listed in one order by
/// both sides.
void move(const std::vector<ShardMetadata>& from, const std::vector<Tensor>& sources,
          const std::vector<ShardMetadata>& to, const std::vector<Tensor>& targets,
          ProcessGroup& group, Deadline deadline) {
  std::vector<blocks::Piece> outgoing;
  std::vector<blocks::Piece> incoming;
  for (std::size_t f = 0; f < from.size(); ++f) {
    for (std::size_t t = 0; t < to.size(); ++t) {
      if (!sources[f].defined() && !targets[t].defined()) continue;
      const auto both = blocks::intersection(block_of(from[f]), block_of(to[t]));
      if (both.empty()) continue;
      if (sources[f].defined()) {
        outgoing.push_back(
            {to[t].placement.rank, blocks::view_of(sources[f], block_of(from[f]), both), {}});
      }
      if (targets[t].defined()) {
        incoming.push_back(
            {from[f].placement.rank, blocks::view_of(targets[t], block_of(to[t]), both), {}});
      }
    }
  }
  blocks::exchange(group, outgoing, incoming, deadline);
}

}  // namespace

Tensor ShardedTensor::gather(ProcessGroup& group, int root, Deadline deadline) const {
  check_use(*this, group, "gather()");
  if (root < 0 || root >= group.size()) {
    throw InvalidArgument("gather() to rank " + std::to_string(root) + ", which a group of " +
                          std::to_string(group.size()) + " does not have");
  }
  const ShardMetadata whole{Shape(shape().size(), 0), shape(), {root, kCpu}};
  const Tensor result = group.rank() == root ? Tensor::empty(shape(), dtype()) : Tensor();
  move(metadata_->shards, spread(metadata_->shards, owner_, tensors_of(local_)), {whole}, {result},
       group, deadline);
  return result;
}

ShardedTensor ShardedTensor::reshard(const ShardingSpec& spec, ProcessGroup& group,
                                     Deadline deadline) const {
  check_use(*this, group, "reshard()");
  ShardedTensorMetadata metadata{shape(), dtype(), shards_of(spec, shape(), group.size())};
  std::vector<Tensor> own;
  for (const ShardMetadata& s : metadata.shards) {
    if (s.placement.rank == owner_) own.push_back(Tensor::empty(s.sizes, dtype()));
  }
  move(metadata_->shards, spread(metadata_->shards, owner_, tensors_of(local_)), metadata.shards,
       spread(metadata.shards, owner_, own), group, deadline);
  return from_metadata(std::move(own), std::move(metadata), owner_);
}

}  // namespace meshstage
