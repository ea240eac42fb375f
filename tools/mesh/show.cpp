#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <ostream>

#include <meshstage/core/error/error.hpp>
#include "tools/mesh/json_out.hpp"
#include "tools/mesh/options.hpp"
#include "tools/mesh/words.hpp"

namespace meshstage::tools {
namespace {

constexpr std::size_t kTableRanks = 64;
// A group of n ranks is listed n times, so that few dimensions of a large mesh make an answer that
// nobody can keep: 7 TB for a million ranks in one.
constexpr std::int64_t kMostBytes = std::int64_t{1} << 35;

void append_range(std::string& text, std::int64_t first, std::span<const std::int64_t> strides,
                  std::span<const std::int64_t> sizes) {
  const auto numbers = [&](const char* key, std::span<const std::int64_t> list) {
    text += key;
    if (list.size() == 1) return append_number(text, list[0]);
    for (std::size_t i = 0; i < list.size(); ++i) {
      text += i > 0 ? ',' : '[';
      append_number(text, list[i]);
    }
    text += ']';
  };
  text += "{\"first\":";
  append_number(text, first);
  numbers(",\"stride\":", strides);
  numbers(",\"size\":", sizes);
  text += '}';
}

// All ranks of the mesh: a range if they lie at equal distances, else listed.
std::string compact_ranks(const DeviceMesh& mesh) {
  const std::vector<int> ranks = mesh.ranks();
  const std::int64_t stride = ranks.size() > 1 ? std::int64_t{ranks[1]} - ranks[0] : 1;
  std::string text;
  for (std::size_t i = 1; i < ranks.size(); ++i) {
    if (ranks[i] - ranks[i - 1] == stride) continue;
    append_list(text, ranks);
    return text;
  }
  const std::int64_t size = mesh.size();
  append_range(text, ranks[0], {&stride, 1}, {&size, 1});
  return text;
}

// The JSON of all slices along some dimensions; many ranks share each. As nested lists, or compact:
// as a range where the ranks lie at equal distances along each dimension.
class SliceTexts {
 public:
  SliceTexts(const DeviceMesh& mesh, const std::vector<std::string>& names, bool compact)
      : mesh_(mesh), compact_(compact) {
    step_.assign(mesh.ndim(), 1);
    for (std::size_t d = mesh.ndim(); d-- > 1;) step_[d - 1] = step_[d] * mesh.shape()[d];
    others_ = mesh.shape();
    for (const std::string& name : names) {
      kept_.push_back(mesh.dim(name));
      others_[kept_.back()] = 1;
    }
    start_.push_back(0);
    add_slices(0, 0);
  }
  [[nodiscard]] std::string_view at(std::span<const std::int64_t> coordinate) const {
    std::size_t index = 0;
    for (std::size_t d = 0; d < others_.size(); ++d) {
      const auto size = static_cast<std::size_t>(others_[d]);
      index = index * size + (size == 1 ? 0 : static_cast<std::size_t>(coordinate[d]));
    }
    return std::string_view(text_).substr(start_[index], start_[index + 1] - start_[index]);
  }

 private:
  // One slice for each combination of the coordinates that are not sliced, in row-major order.
  void add_slices(std::size_t dim, std::int64_t place) {
    if (dim == others_.size()) {
      if (!compact_ || !add_range(place)) add_lists(0, place);
      start_.push_back(text_.size());
      return;
    }
    for (std::int64_t i = 0; i < others_[dim]; ++i) add_slices(dim + 1, place + i * step_[dim]);
  }
  bool add_range(std::int64_t place) {
    const std::int64_t first = mesh_.rank_at(place);
    std::vector<std::int64_t> strides;
    std::vector<std::int64_t> sizes;
    for (const std::size_t d : kept_) {
      sizes.push_back(mesh_.shape()[d]);
      strides.push_back(sizes.back() > 1 ? mesh_.rank_at(place + step_[d]) - first : 1);
    }
    if (!mesh_.is_strided() && !in_range(0, place, first, strides)) return false;
    append_range(text_, first, strides, sizes);
    return true;
  }
  [[nodiscard]] bool in_range(std::size_t level, std::int64_t place, std::int64_t rank,
                              const std::vector<std::int64_t>& strides) const {
    if (level == kept_.size()) return mesh_.rank_at(place) == rank;
    for (std::int64_t i = 0; i < mesh_.shape()[kept_[level]]; ++i) {
      if (!in_range(level + 1, place + i * step_[kept_[level]], rank + i * strides[level],
                    strides)) {
        return false;
      }
    }
    return true;
  }
  void add_lists(std::size_t level, std::int64_t place) {
    if (level == kept_.size()) {
      append_number(text_, mesh_.rank_at(place));
      return;
    }
    text_ += '[';
    for (std::int64_t i = 0; i < mesh_.shape()[kept_[level]]; ++i) {
      if (i > 0) text_ += ',';
      add_lists(level + 1, place + i * step_[kept_[level]]);
    }
    text_ += ']';
  }

  const DeviceMesh& mesh_;
  const bool compact_;
  std::vector<std::int64_t> step_;    // in places, of each dimension
  std::vector<std::int64_t> others_;  // sizes; 1 for a dimension that is sliced
  std::vector<std::size_t> kept_;
  std::string text_;
  std::vector<std::size_t> start_;  // of each slice in text_, and the end
};

void coordinate_at(const DeviceMesh& mesh, std::int64_t index, std::vector<std::int64_t>& out) {
  out.resize(mesh.ndim());
  for (std::size_t d = mesh.ndim(); d-- > 0;) {
    out[d] = index % mesh.shape()[d];
    index /= mesh.shape()[d];
  }
}

void show_json(const DeviceMesh& mesh, const std::vector<std::string>& slice,
               const std::vector<int>& shown, bool compact, std::ostream& out) {
  std::vector<SliceTexts> groups;
  for (const std::string& name : mesh.names()) {
    groups.emplace_back(mesh, std::vector<std::string>{name}, compact);
  }
  std::optional<SliceTexts> slices;
  if (!slice.empty()) slices.emplace(mesh, slice, compact);
  std::vector<std::int64_t> coordinate;
  std::int64_t bytes = 0;
  for (const int rank : shown) {
    coordinate_at(mesh, *mesh.index_of(rank), coordinate);
    for (const SliceTexts& g : groups) bytes += std::ssize(g.at(coordinate));
    if (slices) bytes += std::ssize(slices->at(coordinate));
  }
  if (bytes > kMostBytes) {
    throw InvalidArgument(
        fmt::format("the answer has {}, for each rank lists its groups: say which "
                    "ranks are wanted, such as --rank 0-15{}",
                    bytes_words(static_cast<double>(bytes)), compact ? "" : ", or add --compact"));
  }
  JsonOut json(out);
  json.begin_object();
  if (compact) json.key("compact").value(true);
  json.key("shape").list(mesh.shape());
  json.key("names").list(mesh.names());
  std::string all;
  if (compact) {
    all = compact_ranks(mesh);
  } else {
    append_list(all, mesh.ranks());
  }
  json.key("ranks").raw(all);
  json.key("slice_names").list(slice);
  json.key("per_rank").begin_list();
  for (const int rank : shown) {
    coordinate_at(mesh, *mesh.index_of(rank), coordinate);
    json.begin_object();
    json.key("rank").value(std::int64_t{rank});
    json.key("coordinate").list(coordinate);
    json.key("slice").raw(slices ? slices->at(coordinate) : "[]");
    json.key("groups").begin_object();
    for (std::size_t d = 0; d < mesh.ndim(); ++d) {
      json.key(mesh.names()[d]).raw(groups[d].at(coordinate));
    }
    json.end_object();
    json.end_object();
  }
  json.end_list();
  json.end_object();
  json.finish();
}

void show_table(const DeviceMesh& mesh, const std::vector<std::string>& slice,
                const std::vector<int>& shown, std::ostream& out) {
  out << fmt::format("mesh {}: {} {}\n\n", dims_words(mesh), mesh.size(),
                     mesh.size() == 1 ? "rank" : "ranks");
  Table dims({"dimension", "size", "groups", "first group"});
  for (std::size_t d = 0; d < mesh.ndim(); ++d) {
    dims.add({mesh.names()[d], std::to_string(mesh.shape()[d]),
              std::to_string(mesh.size() / mesh.shape()[d]),
              short_ranks(mesh.group(mesh.rank_at(0), mesh.names()[d]))});
  }
  out << dims.str() << "\n";
  std::vector<std::string> header{"rank"};
  for (const std::string& name : mesh.names()) header.push_back(name);
  for (const std::string& name : mesh.names()) header.push_back(name + " group");
  if (!slice.empty()) header.push_back(fmt::format("slice {}", fmt::join(slice, ",")));
  Table ranks(header);
  const std::size_t n = std::min(shown.size(), kTableRanks);
  for (std::size_t i = 0; i < n; ++i) {
    std::vector<std::string> row{std::to_string(shown[i])};
    const auto coordinate = mesh.coordinate(shown[i]).value();
    for (const std::int64_t c : coordinate) row.push_back(std::to_string(c));
    for (const std::string& name : mesh.names()) {
      row.push_back(short_ranks(mesh.group(shown[i], name), 24));
    }
    if (!slice.empty()) row.push_back(short_ranks(mesh.slice(slice, shown[i]).ranks(), 32));
    ranks.add(std::move(row));
  }
  out << ranks.str();
  if (n < shown.size()) {
    out << fmt::format("  ... and {} more ranks: --rank 70,80-83 shows those, --json all\n",
                       shown.size() - n);
  }
}

}  // namespace

int mesh_show(const ShowOptions& options, std::ostream& out) {
  if (options.compact && !options.json) {
    throw InvalidArgument("--compact is a form of JSON: add --json");
  }
  const DeviceMesh mesh = read_mesh(options.mesh);
  const std::vector<std::string> slice = read_names(options.slice);
  if (!slice.empty()) (void)mesh.slice(slice, mesh.rank_at(0));  // the names exist
  std::vector<int> shown;
  if (options.only.empty()) {
    shown = mesh.ranks();
    std::sort(shown.begin(), shown.end());
  } else {
    shown = parse_ranks(options.only);
    for (const int r : shown) {
      if (!mesh.contains(r)) {
        throw InvalidArgument("--rank " + std::to_string(r) + " is not in " + mesh.to_string());
      }
    }
  }
  if (options.json) {
    show_json(mesh, slice, shown, options.compact, out);
  } else {
    show_table(mesh, slice, shown, out);
  }
  return 0;
}

}  // namespace meshstage::tools
