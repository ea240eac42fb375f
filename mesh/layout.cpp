#include <meshstage/mesh/layout.hpp>

#include <algorithm>
#include <set>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/text.hpp>

namespace meshstage {
namespace {

// The i-th of k parts of `size` elements: by ceil(size/k), so that the last are smaller or empty.
struct Part {
  std::int64_t start = 0;
  std::int64_t size = 0;
};
Part part(std::int64_t size, std::int64_t k, std::int64_t i) {
  const std::int64_t chunk = text::ceil_div(size, k);
  if (chunk == 0 || i >= text::ceil_div(size, chunk)) return {size, 0};
  const std::int64_t start = chunk * i;
  return {start, std::min(chunk, size - start)};
}

}  // namespace

Layout::Layout(std::span<const std::int64_t> mesh_shape, std::span<const std::int64_t> tensor_shape,
               std::span<const Placement> placements)
    : mesh_(mesh_shape.begin(), mesh_shape.end()),
      tensor_(tensor_shape.begin(), tensor_shape.end()) {
  if (placements.size() != mesh_.size()) {
    throw InvalidArgument(
        "placements " + (placements.empty() ? "(none)" : meshstage::to_string(placements)) +
        " do not fit mesh " + text::list<std::int64_t>(mesh_) + ": give one for each of its " +
        text::count(static_cast<std::int64_t>(mesh_.size()), "dimension") + ", not " +
        std::to_string(placements.size()));
  }
  for (const std::int64_t m : mesh_) {
    if (m < 1) {
      throw InvalidArgument("mesh " + text::list<std::int64_t>(mesh_) +
                            ": every size must be at least 1");
    }
  }
  bool empty = false;
  bool overflow = false;
  for (const std::int64_t s : tensor_) {
    if (s < 0) {
      throw InvalidArgument("tensor " + text::list<std::int64_t>(tensor_) + ": size " +
                            std::to_string(s) + " is negative");
    }
    empty = empty || s == 0;
    const auto next = text::product(numel_, std::max<std::int64_t>(s, 1));
    overflow = overflow || !next;
    numel_ = next.value_or(numel_);
  }
  // Even where another size is 0, so that no partial product can wrap.
  if (overflow) {
    throw InvalidArgument("tensor " + text::list<std::int64_t>(tensor_) +
                          " has more than 2^63-1 elements");
  }
  if (empty) numel_ = 0;
  placements_ = normalized(placements, tensor_.size());
}

void Layout::at(std::span<const std::int64_t> coordinate, LocalShard& shard) const {
  if (coordinate.size() != mesh_.size()) {
    throw InvalidArgument("coordinate " + text::list(coordinate) + " is not in mesh " +
                          text::list<std::int64_t>(mesh_));
  }
  shard.shape = tensor_;
  shard.offset.assign(tensor_.size(), 0);
  for (std::size_t d = 0; d < mesh_.size(); ++d) {
    if (coordinate[d] < 0 || coordinate[d] >= mesh_[d]) {
      throw InvalidArgument("coordinate " + text::list(coordinate) + " is not in mesh " +
                            text::list<std::int64_t>(mesh_));
    }
    if (!placements_[d].is_shard()) continue;
    const auto t = static_cast<std::size_t>(placements_[d].dim());
    const Part mine = part(shard.shape[t], mesh_[d], coordinate[d]);
    shard.shape[t] = mine.size;
    shard.offset[t] += mine.start;
  }
  for (std::size_t t = 0; t < tensor_.size(); ++t) {
    if (shard.shape[t] == 0) shard.offset[t] = tensor_[t];
  }
}

LocalShard Layout::at(std::span<const std::int64_t> coordinate) const {
  LocalShard out;
  at(coordinate, out);
  return out;
}

std::int64_t Layout::local_numel(std::span<const std::int64_t> coordinate) const {
  std::int64_t n = 1;
  for (std::size_t t = 0; t < tensor_.size(); ++t) {
    std::int64_t size = tensor_[t];
    for (std::size_t d = 0; d < mesh_.size(); ++d) {
      if (placements_[d].is_shard(static_cast<int>(t))) {
        size = part(size, mesh_[d], coordinate[d]).size;
      }
    }
    n *= size;
  }
  return n;
}

std::vector<std::int64_t> Layout::part_sizes(std::size_t tensor_dim) const {
  std::set<std::int64_t> sizes{tensor_.at(tensor_dim)};
  for (std::size_t d = 0; d < mesh_.size(); ++d) {
    if (!placements_[d].is_shard(static_cast<int>(tensor_dim))) continue;
    // Of the parts of one size all but the last that has something are alike.
    std::set<std::int64_t> cut;
    for (const std::int64_t size : sizes) {
      const std::int64_t used =
          size == 0 ? 0 : text::ceil_div(size, text::ceil_div(size, mesh_[d]));
      if (used > 1) cut.insert(part(size, mesh_[d], 0).size);
      if (used > 0) cut.insert(part(size, mesh_[d], used - 1).size);
      if (used < mesh_[d]) cut.insert(0);
    }
    sizes = std::move(cut);
  }
  return {sizes.begin(), sizes.end()};
}

bool Layout::is_even() const {
  bool even = true;
  for (std::size_t t = 0; t < tensor_.size(); ++t) {
    const auto sizes = part_sizes(t);
    if (sizes.back() == 0) return true;  // nobody has anything
    even = even && sizes.size() == 1;
  }
  return even;
}

bool Layout::all_have_elements() const {
  for (std::size_t t = 0; t < tensor_.size(); ++t) {
    if (part_sizes(t).front() == 0) return false;
  }
  return true;
}

LocalShard local_shard(std::span<const std::int64_t> mesh_shape,
                       std::span<const std::int64_t> coordinate,
                       std::span<const std::int64_t> tensor_shape,
                       std::span<const Placement> placements) {
  return Layout(mesh_shape, tensor_shape, placements).at(coordinate);
}

LocalShard local_shard(const DeviceMesh& mesh, int rank, std::span<const std::int64_t> tensor_shape,
                       std::span<const Placement> placements) {
  const auto coordinate = mesh.coordinate(rank);
  if (!coordinate) {
    throw InvalidArgument("rank " + std::to_string(rank) + " is not in " + mesh.to_string());
  }
  return Layout(mesh.shape(), tensor_shape, placements).at(*coordinate);
}

}  // namespace meshstage
