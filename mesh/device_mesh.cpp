#include <meshstage/mesh/device_mesh.hpp>

#include <algorithm>
#include <limits>
#include <numeric>
#include <ostream>
#include <unordered_map>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/text.hpp>

namespace meshstage {
namespace {

constexpr std::int64_t kMaxRanks = std::numeric_limits<int>::max();

std::string shape_words(const std::vector<std::int64_t>& shape) {
  return "mesh " + text::list<std::int64_t>(shape);
}

bool good_name(const std::string& name) {
  return !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  });
}

// Spreads the bits of x; the constants are those of splitmix64.
std::uint64_t mixed(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// Row-major strides in places (not ranks).
std::vector<std::int64_t> place_strides(const std::vector<std::int64_t>& shape) {
  std::vector<std::int64_t> strides(shape.size(), 1);
  for (std::size_t d = shape.size(); d-- > 1;) strides[d - 1] = strides[d] * shape[d];
  return strides;
}

}  // namespace

struct DeviceMesh::Order {
  std::vector<int> ranks;
  // Way back: places by rank - lowest (-1: none) where ranks lie close together, else places sorted
  // by rank.
  int lowest = 0;
  bool dense = false;
  std::vector<int> places;

  explicit Order(std::vector<int> all) : ranks(std::move(all)) {
    const auto [low, high] = std::minmax_element(ranks.begin(), ranks.end());
    lowest = *low;
    const std::int64_t range = std::int64_t{*high} - *low + 1;
    dense = range <= 4 * static_cast<std::int64_t>(ranks.size()) + 1024;
    if (dense) {
      places.assign(static_cast<std::size_t>(range), -1);
      for (std::size_t i = 0; i < ranks.size(); ++i) {
        int& place = places[static_cast<std::size_t>(ranks[i] - lowest)];
        if (place >= 0) repeated(ranks[i]);
        place = static_cast<int>(i);
      }
    } else {
      places.resize(ranks.size());
      std::iota(places.begin(), places.end(), 0);
      std::sort(places.begin(), places.end(), [&](int a, int b) { return at(a) < at(b); });
      const auto same = std::adjacent_find(places.begin(), places.end(),
                                           [&](int a, int b) { return at(a) == at(b); });
      if (same != places.end()) repeated(at(*same));
    }
  }
  [[nodiscard]] int at(int place) const { return ranks[static_cast<std::size_t>(place)]; }
  [[nodiscard]] std::optional<std::int64_t> find(int rank) const noexcept {
    if (dense) {
      const std::int64_t i = std::int64_t{rank} - lowest;
      if (i < 0 || i >= static_cast<std::int64_t>(places.size())) return {};
      const int place = places[static_cast<std::size_t>(i)];
      return place < 0 ? std::optional<std::int64_t>() : place;
    }
    const auto it = std::lower_bound(places.begin(), places.end(), rank,
                                     [&](int place, int r) { return at(place) < r; });
    if (it == places.end() || at(*it) != rank) return {};
    return *it;
  }
  [[noreturn]] static void repeated(int rank) {
    throw InvalidArgument("rank " + std::to_string(rank) +
                          " is listed twice in the mesh: list every rank once");
  }
};

DeviceMesh DeviceMesh::make(std::vector<std::int64_t> shape, std::vector<std::string> names) {
  if (shape.empty()) {
    throw InvalidArgument("a mesh needs at least one dimension: give its sizes, such as 2,4");
  }
  DeviceMesh mesh;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] < 1) {
      throw InvalidArgument(shape_words(shape) + ": dimension " + std::to_string(d) + " has size " +
                            std::to_string(shape[d]) + ": every size must be at least 1");
    }
    const auto next = text::product(mesh.size_, shape[d]);
    if (!next || *next > kMaxRanks) {
      throw InvalidArgument(shape_words(shape) + " has more ranks than fit a rank number (" +
                            std::to_string(kMaxRanks) + "): use smaller sizes");
    }
    mesh.size_ = *next;
  }
  if (names.empty()) {
    for (std::size_t d = 0; d < shape.size(); ++d) names.push_back("dim" + std::to_string(d));
  }
  if (names.size() != shape.size()) {
    throw InvalidArgument(shape_words(shape) + " has " +
                          text::count(static_cast<std::int64_t>(shape.size()), "dimension") +
                          " but " + text::count(static_cast<std::int64_t>(names.size()), "name") +
                          " (" + text::list(names) + "): give one name for each");
  }
  for (std::size_t d = 0; d < names.size(); ++d) {
    if (!good_name(names[d])) {
      throw InvalidArgument("mesh dimension name " + text::quoted(names[d]) +
                            ": use 1 to 64 letters, digits and _ - .");
    }
    if (std::find(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(d), names[d]) !=
        names.begin() + static_cast<std::ptrdiff_t>(d)) {
      throw InvalidArgument("mesh dimension name '" + names[d] +
                            "' is listed twice: give every dimension a name of its own");
    }
  }
  mesh.shape_ = std::move(shape);
  mesh.names_ = std::move(names);
  return mesh;
}

DeviceMesh DeviceMesh::from_shape(std::vector<std::int64_t> shape, std::vector<std::string> names,
                                  int first_rank) {
  DeviceMesh mesh = make(std::move(shape), std::move(names));
  if (first_rank < 0 || mesh.size_ - 1 > kMaxRanks - first_rank) {
    throw InvalidArgument(shape_words(mesh.shape_) + " from rank " + std::to_string(first_rank) +
                          ": ranks must lie in 0.." + std::to_string(kMaxRanks));
  }
  std::vector<std::int64_t> strides = place_strides(mesh.shape_);
  for (std::size_t d = 0; d < strides.size(); ++d) {
    if (mesh.shape_[d] == 1) strides[d] = 0;
  }
  mesh.set_strides(first_rank, std::move(strides));
  return mesh;
}

void DeviceMesh::set_strides(std::int64_t offset, std::vector<std::int64_t> strides) {
  offset_ = offset;
  strides_ = std::move(strides);
  by_stride_.resize(strides_.size());
  std::iota(by_stride_.begin(), by_stride_.end(), std::size_t{0});
  std::stable_sort(by_stride_.begin(), by_stride_.end(),
                   [&](std::size_t a, std::size_t b) { return strides_[a] > strides_[b]; });
}

DeviceMesh DeviceMesh::from_ranks(std::vector<int> ranks, std::vector<std::int64_t> shape,
                                  std::vector<std::string> names) {
  DeviceMesh mesh = make(std::move(shape), std::move(names));
  if (static_cast<std::int64_t>(ranks.size()) != mesh.size_) {
    throw InvalidArgument(shape_words(mesh.shape_) + " holds " + text::count(mesh.size_, "rank") +
                          " but " + std::to_string(ranks.size()) +
                          " are given: the product of the sizes must be the number of ranks");
  }
  for (const int r : ranks) {
    if (r < 0) {
      throw InvalidArgument("rank " + std::to_string(r) + " in a mesh: ranks count from 0");
    }
  }
  // Strided if the neighbours of the first rank say so and each stride is larger than all that the
  // smaller ones reach (then the ranks are distinct, and a rank's coordinate is found by division).
  const std::vector<std::int64_t> places = place_strides(mesh.shape_);
  std::vector<std::int64_t> strides(mesh.ndim(), 0);
  for (std::size_t d = 0; d < mesh.ndim(); ++d) {
    if (mesh.shape_[d] > 1) strides[d] = ranks[static_cast<std::size_t>(places[d])] - ranks[0];
  }
  mesh.set_strides(ranks[0], strides);
  bool strided = true;
  std::int64_t reach = 0;
  for (std::size_t i = mesh.ndim(); i-- > 0 && strided;) {
    const std::size_t d = mesh.by_stride_[i];
    if (mesh.shape_[d] == 1) continue;
    strided = strides[d] > reach;
    reach += strides[d] * (mesh.shape_[d] - 1);
    strided = strided && reach <= kMaxRanks;
  }
  for (std::int64_t i = 0; i < mesh.size_ && strided; ++i) {
    strided = mesh.unchecked_rank(i) == ranks[static_cast<std::size_t>(i)];
  }
  if (!strided) {
    mesh.set_strides(0, {});
    mesh.order_ = std::make_shared<Order>(std::move(ranks));
  }
  return mesh;
}

DeviceMesh DeviceMesh::from_groups(std::span<const MeshDimGroups> dims) {
  const std::size_t n = dims.size();
  std::vector<std::int64_t> shape;
  std::vector<std::string> names;
  std::unordered_map<int, std::vector<std::int64_t>> coordinates;
  for (std::size_t d = 0; d < n; ++d) {
    names.push_back(dims[d].name);
    if (dims[d].groups.empty() || dims[d].groups.front().empty()) {
      throw InvalidArgument("dimension '" + dims[d].name + "' has no groups of ranks");
    }
    shape.push_back(static_cast<std::int64_t>(dims[d].groups.front().size()));
    for (const auto& group : dims[d].groups) {
      if (static_cast<std::int64_t>(group.size()) != shape.back()) {
        throw InvalidArgument("dimension '" + dims[d].name + "' has groups of " +
                              std::to_string(shape.back()) + " and of " +
                              std::to_string(group.size()) +
                              " ranks: all groups of a dimension have the same size");
      }
      for (std::size_t i = 0; i < group.size(); ++i) {
        auto& c = coordinates[group[i]];
        if (c.size() != d) {
          throw InvalidArgument("rank " + std::to_string(group[i]) + " is " +
                                (c.size() > d ? "twice in" : "missing from a dimension before") +
                                " the groups of '" + dims[d].name +
                                "': every rank is in one group of each dimension");
        }
        c.push_back(static_cast<std::int64_t>(i));
      }
    }
  }
  const DeviceMesh counted = make(shape, names);
  const auto fail = [](int rank) {
    throw InvalidArgument("the groups do not form a mesh: rank " + std::to_string(rank) +
                          " shares its place with another, or a group joins ranks that differ "
                          "along another dimension");
  };
  if (static_cast<std::int64_t>(coordinates.size()) != counted.size_) {
    throw InvalidArgument("the groups have " + std::to_string(coordinates.size()) +
                          " ranks but their sizes make a " + shape_words(shape) + " of " +
                          std::to_string(counted.size_));
  }
  const auto places = place_strides(shape);
  std::vector<int> ranks(coordinates.size(), -1);
  for (const auto& [rank, c] : coordinates) {
    if (c.size() != n) {
      throw InvalidArgument("rank " + std::to_string(rank) + " is in no group of '" +
                            dims[c.size()].name + "'");
    }
    std::int64_t at = 0;
    for (std::size_t d = 0; d < n; ++d) at += c[d] * places[d];
    int& place = ranks[static_cast<std::size_t>(at)];
    if (place >= 0) fail(std::max(place, rank));
    place = rank;
  }
  DeviceMesh mesh = from_ranks(std::move(ranks), std::move(shape), std::move(names));
  for (const MeshDimGroups& dim : dims) {
    for (const auto& group : dim.groups) {
      if (mesh.group(group.front(), dim.name) != group) fail(group.front());
    }
  }
  return mesh;
}

std::size_t DeviceMesh::dim(std::string_view name) const {
  const auto it = std::find(names_.begin(), names_.end(), name);
  if (it == names_.end()) {
    throw InvalidArgument("the mesh has no dimension " + text::quoted(name) + ": it has " +
                          text::list(names_));
  }
  return static_cast<std::size_t>(it - names_.begin());
}

std::vector<std::size_t> DeviceMesh::dims(std::span<const std::string> names) const {
  if (names.empty()) throw InvalidArgument("name at least one dimension of " + text::list(names_));
  std::vector<std::size_t> out;
  for (const std::string& name : names) {
    const std::size_t d = dim(name);
    if (std::find(out.begin(), out.end(), d) != out.end()) {
      throw InvalidArgument("dimension '" + name + "' is named twice: name it once");
    }
    out.push_back(d);
  }
  return out;
}

int DeviceMesh::unchecked_rank(std::int64_t index) const noexcept {
  if (order_) return order_->ranks[static_cast<std::size_t>(index)];
  std::int64_t rank = offset_;
  for (std::size_t d = shape_.size(); d-- > 0;) {
    rank += index % shape_[d] * strides_[d];
    index /= shape_[d];
  }
  return static_cast<int>(rank);
}

int DeviceMesh::rank_at(std::int64_t index) const {
  if (index < 0 || index >= size_) {
    throw InvalidArgument("place " + std::to_string(index) + " in a mesh of " +
                          text::count(size_, "rank"));
  }
  return unchecked_rank(index);
}

int DeviceMesh::rank_at(std::span<const std::int64_t> coordinate) const {
  bool fits = coordinate.size() == ndim();
  std::int64_t index = 0;
  for (std::size_t d = 0; d < ndim() && fits; ++d) {
    fits = coordinate[d] >= 0 && coordinate[d] < shape_[d];
    index = index * shape_[d] + coordinate[d];
  }
  if (!fits) {
    throw InvalidArgument("coordinate " + text::list(coordinate) + " is not in " +
                          shape_words(shape_));
  }
  return unchecked_rank(index);
}

std::optional<std::int64_t> DeviceMesh::index_of(int rank) const noexcept {
  if (order_) return order_->find(rank);
  // Each stride is larger than all that smaller ones reach, so the largest is divided off first.
  std::int64_t rest = rank - offset_;
  if (rest < 0) return {};
  std::int64_t index = 0;
  for (const std::size_t d : by_stride_) {
    if (strides_[d] == 0) continue;
    const std::int64_t c = rest / strides_[d];
    if (c >= shape_[d]) return {};
    rest -= c * strides_[d];
    std::int64_t place = c;
    for (std::size_t e = d + 1; e < shape_.size(); ++e) place *= shape_[e];
    index += place;
  }
  if (rest != 0) return {};
  return index;
}

std::int64_t DeviceMesh::require_index(int rank) const {
  const auto index = index_of(rank);
  if (!index) throw InvalidArgument("rank " + std::to_string(rank) + " is not in " + to_string());
  return *index;
}

std::optional<std::vector<std::int64_t>> DeviceMesh::coordinate(int rank) const {
  auto index = index_of(rank);
  if (!index) return {};
  std::vector<std::int64_t> out(ndim());
  for (std::size_t d = ndim(); d-- > 0;) {
    out[d] = *index % shape_[d];
    *index /= shape_[d];
  }
  return out;
}

int DeviceMesh::local_rank(int rank, std::string_view name) const {
  const std::size_t d = dim(name);
  std::int64_t index = require_index(rank);
  for (std::size_t e = ndim(); e-- > d + 1;) index /= shape_[e];
  return static_cast<int>(index % shape_[d]);
}

std::vector<int> DeviceMesh::ranks() const {
  if (order_) return order_->ranks;
  std::vector<int> out(static_cast<std::size_t>(size_));
  for (std::int64_t i = 0; i < size_; ++i) out[static_cast<std::size_t>(i)] = unchecked_rank(i);
  return out;
}

bool operator==(const DeviceMesh& a, const DeviceMesh& b) noexcept {
  if (a.shape_ != b.shape_ || a.names_ != b.names_) return false;
  if (a.is_strided() != b.is_strided()) return false;  // the same ranks are always stored alike
  if (a.is_strided()) return a.offset_ == b.offset_ && a.strides_ == b.strides_;
  return a.order_ == b.order_ || a.order_->ranks == b.order_->ranks;
}

std::uint64_t DeviceMesh::hash() const noexcept {
  std::uint64_t h = mixed(shape_.size());
  const auto add = [&h](std::uint64_t x) { h = mixed(h ^ mixed(x)); };
  for (const std::int64_t s : shape_) add(static_cast<std::uint64_t>(s));
  for (const std::string& name : names_) {
    add(name.size());
    for (const char c : name) add(static_cast<unsigned char>(c));
  }
  if (order_) {
    for (const int r : order_->ranks) add(static_cast<std::uint64_t>(r));
  } else {
    add(static_cast<std::uint64_t>(offset_));
    for (const std::int64_t s : strides_) add(static_cast<std::uint64_t>(s));
  }
  return h;
}

std::string DeviceMesh::to_string() const {
  std::string out = "DeviceMesh(";
  for (std::size_t d = 0; d < ndim(); ++d) {
    out += (d > 0 ? ", " : "") + names_[d] + "=" + std::to_string(shape_[d]);
  }
  std::vector<int> first;
  bool in_order = true;
  for (std::int64_t i = 0; i < std::min<std::int64_t>(size_, 17); ++i) {
    first.push_back(unchecked_rank(i));
  }
  if (is_strided()) {
    const std::vector<std::int64_t> row = place_strides(shape_);
    for (std::size_t d = 0; d < ndim(); ++d) {
      in_order = in_order && (shape_[d] == 1 || strides_[d] == row[d]);
    }
  } else {
    in_order = false;
  }
  if (in_order) {
    return out + "; ranks " + std::to_string(offset_) + ".." + std::to_string(offset_ + size_ - 1) +
           ")";
  }
  return out + "; ranks " + text::list<int>(first) + ")";
}

std::ostream& operator<<(std::ostream& out, const DeviceMesh& mesh) {
  return out << mesh.to_string();
}

}  // namespace meshstage
