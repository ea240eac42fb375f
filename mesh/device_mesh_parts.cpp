// DeviceMesh: parts of a mesh, and meshes with other dimensions over the same ranks.
#include <algorithm>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/device_mesh.hpp>
#include <meshstage/mesh/text.hpp>

namespace meshstage {
namespace {

// Goes through all coordinates of some dimensions in row-major order and gives the place (in the
// whole mesh) of each, the other coordinates being those of `base`.
template <class F>
void for_each_place(const std::vector<std::int64_t>& shape, std::span<const std::size_t> dims,
                    std::int64_t base, F&& visit) {
  std::vector<std::int64_t> step;
  for (const std::size_t d : dims) {
    std::int64_t s = 1;
    for (std::size_t e = d + 1; e < shape.size(); ++e) s *= shape[e];
    step.push_back(s);
  }
  std::vector<std::int64_t> c(dims.size(), 0);
  for (std::int64_t place = base;;) {
    visit(place);
    std::size_t i = dims.size();
    for (; i-- > 0;) {
      place += step[i];
      if (++c[i] < shape[dims[i]]) break;
      place -= c[i] * step[i];
      c[i] = 0;
    }
    if (i == static_cast<std::size_t>(-1)) return;
  }
}

// The place with zero along `dims`.
std::int64_t with_zero(const std::vector<std::int64_t>& shape, std::span<const std::size_t> dims,
                       std::int64_t place) {
  std::int64_t out = place;
  for (const std::size_t d : dims) {
    std::int64_t step = 1;
    for (std::size_t e = d + 1; e < shape.size(); ++e) step *= shape[e];
    out -= place / step % shape[d] * step;
  }
  return out;
}

}  // namespace

DeviceMesh DeviceMesh::slice_at(std::span<const std::size_t> dims, std::int64_t base) const {
  std::vector<std::int64_t> shape;
  std::vector<std::string> names;
  for (const std::size_t d : dims) {
    shape.push_back(shape_[d]);
    names.push_back(names_[d]);
  }
  if (!order_) {
    DeviceMesh out = make(std::move(shape), std::move(names));
    std::vector<std::int64_t> strides;
    for (const std::size_t d : dims) strides.push_back(strides_[d]);
    out.set_strides(unchecked_rank(base), std::move(strides));
    return out;
  }
  std::vector<int> ranks;
  for_each_place(shape_, dims, base,
                 [&](std::int64_t place) { ranks.push_back(unchecked_rank(place)); });
  return from_ranks(std::move(ranks), std::move(shape), std::move(names));
}

DeviceMesh DeviceMesh::slice(std::span<const std::string> names, int rank) const {
  const std::vector<std::size_t> kept = dims(names);
  return slice_at(kept, with_zero(shape_, kept, require_index(rank)));
}

DeviceMesh DeviceMesh::slice(std::string_view name, int rank) const {
  const std::string one(name);
  return slice(std::span(&one, 1), rank);
}

std::vector<DeviceMesh> DeviceMesh::slices(std::span<const std::string> names) const {
  const std::vector<std::size_t> kept = dims(names);
  std::vector<std::size_t> others;
  for (std::size_t d = 0; d < ndim(); ++d) {
    if (std::find(kept.begin(), kept.end(), d) == kept.end()) others.push_back(d);
  }
  std::vector<DeviceMesh> out;
  for_each_place(shape_, others, 0,
                 [&](std::int64_t base) { out.push_back(slice_at(kept, base)); });
  return out;
}

DeviceMesh DeviceMesh::at(std::string_view name, std::int64_t coordinate) const {
  const std::size_t d = dim(name);
  if (coordinate < 0 || coordinate >= shape_[d]) {
    throw InvalidArgument("coordinate " + std::to_string(coordinate) + " of dimension " +
                          text::quoted(name) + ": use 0 to " + std::to_string(shape_[d] - 1));
  }
  std::vector<std::int64_t> shape = shape_;
  shape[d] = 1;
  if (!order_) {
    DeviceMesh out = make(std::move(shape), names_);
    std::vector<std::int64_t> strides = strides_;
    const std::int64_t offset = offset_ + coordinate * strides[d];
    strides[d] = 0;
    out.set_strides(offset, std::move(strides));
    return out;
  }
  std::vector<std::size_t> others;
  std::int64_t step = 1;  // in places, of dimension d
  for (std::size_t e = 0; e < ndim(); ++e) {
    if (e != d) others.push_back(e);
    if (e > d) step *= shape_[e];
  }
  std::vector<int> ranks;
  for_each_place(shape_, others, coordinate * step,
                 [&](std::int64_t place) { ranks.push_back(unchecked_rank(place)); });
  return from_ranks(std::move(ranks), std::move(shape), names_);
}

std::vector<int> DeviceMesh::group(int rank, std::string_view name) const {
  const std::size_t d[] = {dim(name)};
  std::vector<int> out;
  out.reserve(static_cast<std::size_t>(shape_[d[0]]));
  for_each_place(shape_, d, with_zero(shape_, d, require_index(rank)),
                 [&](std::int64_t place) { out.push_back(unchecked_rank(place)); });
  return out;
}

MeshDimGroups DeviceMesh::groups(std::string_view name) const {
  const std::size_t d[] = {dim(name)};
  std::vector<std::size_t> others;
  for (std::size_t e = 0; e < ndim(); ++e) {
    if (e != d[0]) others.push_back(e);
  }
  MeshDimGroups out{std::string(name), {}};
  for_each_place(shape_, others, 0, [&](std::int64_t base) {
    std::vector<int> group;
    group.reserve(static_cast<std::size_t>(shape_[d[0]]));
    for_each_place(shape_, d, base,
                   [&](std::int64_t place) { group.push_back(unchecked_rank(place)); });
    out.groups.push_back(std::move(group));
  });
  return out;
}

DeviceMesh DeviceMesh::flatten(std::string name) const { return flatten(names_, std::move(name)); }

DeviceMesh DeviceMesh::flatten(std::span<const std::string> names, std::string name) const {
  const std::vector<std::size_t> merged = dims(names);
  for (std::size_t i = 1; i < merged.size(); ++i) {
    if (merged[i] != merged[i - 1] + 1) {
      throw InvalidArgument("dimensions '" + names[i - 1] + "' and '" + names[i] +
                            "' are not neighbours in " + to_string() +
                            ": take a slice with the wanted order first");
    }
  }
  if (name.empty()) {
    for (const std::string& n : names) name += (name.empty() ? "" : "_") + n;
  }
  std::vector<std::int64_t> shape;
  std::vector<std::string> new_names;
  for (std::size_t d = 0; d < ndim(); ++d) {
    if (d > merged.front() && d <= merged.back()) {
      shape.back() *= shape_[d];
      continue;
    }
    shape.push_back(shape_[d]);
    new_names.push_back(d == merged.front() ? name : names_[d]);
  }
  return with_shape(std::move(shape), std::move(new_names));
}

DeviceMesh DeviceMesh::unflatten(std::string_view name, std::vector<std::int64_t> sizes,
                                 std::vector<std::string> names) const {
  const std::size_t d = dim(name);
  const DeviceMesh split = make(sizes, names);  // checks them
  if (split.size_ != shape_[d]) {
    throw InvalidArgument("dimension '" + std::string(name) + "' has size " +
                          std::to_string(shape_[d]) + ", not the product of " +
                          text::list<std::int64_t>(sizes));
  }
  std::vector<std::int64_t> shape = shape_;
  std::vector<std::string> new_names = names_;
  const auto at = static_cast<std::ptrdiff_t>(d);
  shape.erase(shape.begin() + at);
  new_names.erase(new_names.begin() + at);
  shape.insert(shape.begin() + at, split.shape_.begin(), split.shape_.end());
  new_names.insert(new_names.begin() + at, split.names_.begin(), split.names_.end());
  return with_shape(std::move(shape), std::move(new_names));
}

// The same ranks in the same row-major order, other dimensions.
DeviceMesh DeviceMesh::with_shape(std::vector<std::int64_t> shape,
                                  std::vector<std::string> names) const {
  if (order_) {
    // An irregular order can become regular: [[0,2],[3,5]] is not, a dimension of its own may be.
    return from_ranks(ranks(), std::move(shape), std::move(names));
  }
  DeviceMesh out = make(std::move(shape), std::move(names));
  // The place one step along each new dimension gives its stride, if the old strides continue.
  std::vector<std::int64_t> strides(out.ndim(), 0);
  std::int64_t step = 1;
  for (std::size_t d = out.ndim(); d-- > 0;) {
    if (out.shape_[d] > 1) strides[d] = unchecked_rank(step) - offset_;
    step *= out.shape_[d];
  }
  out.set_strides(offset_, std::move(strides));
  for (std::size_t e = 0, d = 0; e < ndim() || d < out.ndim();) {
    // Both shapes are cut into runs of dimensions with equal products; a run of several old
    // dimensions must be contiguous.
    const std::size_t first_e = e;
    std::int64_t old_size = 1;
    std::int64_t new_size = 1;
    if (e < ndim()) old_size *= shape_[e++];
    if (d < out.ndim()) new_size *= out.shape_[d++];
    while (old_size != new_size) {
      if (old_size < new_size) {
        old_size *= shape_[e++];
      } else {
        new_size *= out.shape_[d++];
      }
    }
    std::int64_t expected = -1;  // stride that the next larger old dimension must have
    for (std::size_t i = e; i-- > first_e;) {
      if (shape_[i] == 1) continue;
      if (expected >= 0 && strides_[i] != expected) {
        return from_ranks(ranks(), out.shape_, out.names_);
      }
      expected = strides_[i] * shape_[i];
    }
  }
  return out;
}

}  // namespace meshstage
