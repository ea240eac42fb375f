#include <meshstage/sharded/sharded_tensor.hpp>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <ostream>
#include <utility>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/sharded/check_impl.hpp>

namespace meshstage {
namespace {

using nlohmann::json;

/// What a rank tells all others of a shard it gave. No dtype: it gave an undefined tensor.
struct GivenShard {
  ShardMetadata metadata;
  std::string dtype;
  Shape tensor;
};
struct Given {
  Shape shape;
  std::vector<GivenShard> shards;
};

std::string packed(const std::vector<Shard>& shards, const Shape& shape) {
  json list = json::array();
  for (const Shard& s : shards) {
    const bool defined = s.tensor.defined();
    list.push_back({s.metadata.offsets, s.metadata.sizes, s.metadata.placement.rank,
                    static_cast<int>(s.metadata.placement.device.type),
                    s.metadata.placement.device.index,
                    defined ? std::string(to_string(s.tensor.dtype())) : std::string(),
                    defined ? s.tensor.shape() : Shape()});
  }
  return json{{"shape", shape}, {"shards", list}}.dump();
}

Given unpacked(const std::vector<std::byte>& bytes) {
  const auto* begin = reinterpret_cast<const char*>(bytes.data());
  const json j = json::parse(begin, begin + bytes.size());
  Given given{j.at("shape").get<Shape>(), {}};
  for (const json& s : j.at("shards")) {
    GivenShard& shard = given.shards.emplace_back();
    shard.metadata.offsets = s.at(0).get<Shape>();
    shard.metadata.sizes = s.at(1).get<Shape>();
    shard.metadata.placement.rank = s.at(2).get<int>();
    shard.metadata.placement.device = {static_cast<DeviceType>(s.at(3).get<int>()),
                                       s.at(4).get<std::int16_t>()};
    shard.dtype = s.at(5).get<std::string>();
    shard.tensor = s.at(6).get<Shape>();
  }
  return given;
}

std::string name_of(std::size_t rank, std::size_t shard) {
  return "shard " + std::to_string(shard) + " of rank " + std::to_string(rank);
}

/// The first index whose value(i) is one that most of `count` have.
template <class F>
std::size_t most_common(std::size_t count, F&& value) {
  std::map<decltype(value(0)), std::size_t> votes;
  for (std::size_t i = 0; i < count; ++i) ++votes[value(i)];
  std::size_t usual = 0;
  for (std::size_t i = 1; i < count; ++i) {
    if (votes[value(i)] > votes[value(usual)]) usual = i;
  }
  return usual;
}

/// The dtype that most shards have, and which is the first of it; "" where there is none.
std::pair<std::string, std::string> common_dtype(const std::vector<Given>& all) {
  std::vector<std::pair<std::string, std::string>> dtypes;
  for (std::size_t r = 0; r < all.size(); ++r) {
    for (std::size_t i = 0; i < all[r].shards.size(); ++i) {
      const auto& dtype = all[r].shards[i].dtype;
      if (!dtype.empty()) dtypes.emplace_back(dtype, name_of(r, i));
    }
  }
  if (dtypes.empty()) return {};
  return dtypes[most_common(dtypes.size(), [&](std::size_t i) { return dtypes[i].first; })];
}

/// What all ranks were given, judged by each of them alike.
ShardedTensorMetadata judged(const std::vector<Given>& all) {
  const auto fail = [](std::size_t rank, const std::string& what) {
    throw make_error<InvalidArgument>(what, static_cast<int>(rank));
  };
  // First whether ranks mean the same tensor. The one that most of them name is right.
  const std::size_t usual = most_common(all.size(), [&](std::size_t r) { return all[r].shape; });
  const Shape& shape = all[usual].shape;
  for (std::size_t r = 0; r < all.size(); ++r) {
    if (all[r].shape != shape) {
      fail(r, "rank " + std::to_string(r) + " says that the whole tensor is " +
                  to_string(all[r].shape) + ", but rank " + std::to_string(usual) + " " +
                  to_string(shape));
    }
  }
  (void)element_count(shape);  // throws for one that is none

  ShardedTensorMetadata metadata{shape, {}, {}};
  std::vector<std::string> names;
  const auto [dtype, first] = common_dtype(all);
  for (std::size_t r = 0; r < all.size(); ++r) {
    for (std::size_t i = 0; i < all[r].shards.size(); ++i) {
      const GivenShard& s = all[r].shards[i];
      const std::string name = name_of(r, i) + " (" + to_string(s.metadata) + ")";
      if (s.metadata.placement.rank != static_cast<int>(r)) {
        fail(r, name + " is placed on a rank that does not hold it; place it on rank:" +
                    std::to_string(r));
      }
      if (s.dtype.empty()) fail(r, name + " has an undefined tensor");
      if (s.tensor != s.metadata.sizes) {
        fail(r, name + " has a tensor of " + to_string(s.tensor) + ", not the sizes it says");
      }
      if (s.dtype != dtype) {
        fail(r, name + " is of " + s.dtype + ", but " + first + " of " + dtype);
      }
      names.push_back(name_of(r, i));
      metadata.shards.push_back(s.metadata);
    }
  }
  if (metadata.shards.empty()) {
    throw InvalidArgument(
        "no rank has a shard of the tensor " + to_string(shape) +
        "; a tensor without elements needs an empty shard, which gives its dtype");
  }
  metadata.dtype = dtype_from_string(dtype).value();
  sharded::check_cover(metadata.shards, shape, [&](std::size_t i) { return names[i]; });
  return metadata;
}

}  // namespace

ShardedTensor ShardedTensor::init_from_local_shards(std::vector<Shard> shards, const Shape& shape,
                                                    ProcessGroup& group, Deadline deadline) {
  const std::string mine = packed(shards, shape);
  const auto texts = collectives::all_gather_bytes(
      group, std::as_bytes(std::span(mine.data(), mine.size())), deadline);
  std::vector<Given> all;
  for (const auto& text : texts) all.push_back(unpacked(text));
  auto metadata = std::make_shared<const ShardedTensorMetadata>(judged(all));
  return {std::move(shards), std::move(metadata), group.rank(), group.rank()};
}

ShardedTensor ShardedTensor::from_metadata(std::vector<Tensor> tensors,
                                           ShardedTensorMetadata metadata, int rank) {
  if (rank < 0) throw InvalidArgument("there is no rank " + std::to_string(rank));
  (void)element_count(metadata.shape);
  sharded::check_cover(metadata.shards, metadata.shape,
                       [](std::size_t i) { return "shard " + std::to_string(i); });
  std::vector<Shard> local;
  for (const ShardMetadata& s : metadata.shards) {
    if (s.placement.rank == rank) local.push_back({{}, s});
  }
  const ShardedTensor empty(std::move(local),
                            std::make_shared<const ShardedTensorMetadata>(std::move(metadata)),
                            rank, rank);
  return empty.with_tensors(std::move(tensors));
}

ShardedTensor ShardedTensor::with_tensors(std::vector<Tensor> tensors) const {
  const std::string mine = "rank " + std::to_string(owner_);
  if (tensors.size() != local_.size()) {
    throw make_error<InvalidArgument>(mine + " has " + std::to_string(local_.size()) +
                                          " shards, but is given " +
                                          std::to_string(tensors.size()) + " tensors",
                                      owner_);
  }
  ShardedTensor other = *this;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    const ShardMetadata& s = local_[i].metadata;
    if (!t.defined() || t.dtype() != dtype() || t.shape() != s.sizes) {
      throw make_error<InvalidArgument>(
          "shard " + std::to_string(i) + " of " + mine + " (" + meshstage::to_string(s) +
              ") is given " + (t.defined() ? t.describe() : "an undefined tensor") + ", not " +
              std::string(meshstage::to_string(dtype())) + meshstage::to_string(s.sizes),
          owner_);
    }
    other.local_[i].tensor = t;
  }
  return other;
}

ShardedTensor ShardedTensor::held_by(int holder) const {
  ShardedTensor held = *this;
  held.holder_ = holder;
  std::size_t next = 0;
  for (const ShardMetadata& s : metadata_->shards) {
    if (s.placement.rank != owner_) continue;
    Shard& shard = held.local_[next++];
    shard.metadata.placement = holder == owner_ ? s.placement : ShardPlacement{holder, kCpu};
  }
  return held;
}

std::string ShardedTensor::to_string() const {
  std::string text = "ShardedTensor(" + std::string(meshstage::to_string(dtype())) +
                     meshstage::to_string(shape()) + " in " +
                     std::to_string(metadata_->shards.size()) + " shards; rank " +
                     std::to_string(owner_) + " has " + std::to_string(local_.size());
  if (holder_ != owner_) text += ", held by rank " + std::to_string(holder_);
  return text + ")";
}

std::ostream& operator<<(std::ostream& out, const ShardedTensor& tensor) {
  return out << tensor.to_string();
}

}  // namespace meshstage
