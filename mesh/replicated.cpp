#include <meshstage/mesh/replicated.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <set>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/text.hpp>

namespace meshstage {
namespace {

constexpr std::array<std::pair<std::string_view, int>, 12> kTypes{{{"bool", 1},
                                                                   {"u8", 1},
                                                                   {"i8", 1},
                                                                   {"i16", 2},
                                                                   {"i32", 4},
                                                                   {"i64", 8},
                                                                   {"f16", 2},
                                                                   {"bf16", 2},
                                                                   {"f32", 4},
                                                                   {"f64", 8},
                                                                   {"c64", 8},
                                                                   {"c128", 16}}};

void check_fit(const DeviceMesh& mesh, std::span<const Placement> placements) {
  if (placements.size() != mesh.ndim()) {
    throw InvalidArgument("placements " + to_string(placements) + " do not fit " +
                          mesh.to_string() + ": give one for each dimension");
  }
}

// Mesh dimensions of more than one rank, a bit for each in the mesh's order: an int counts the
// ranks of at most 30 of them.
using Dims = std::uint32_t;

Dims lowest(Dims dims) { return dims & (~dims + 1); }

// Small sets first, then as their dimensions are in the mesh's order.
struct SmallFirst {
  bool operator()(Dims a, Dims b) const {
    const int left = std::popcount(a);
    const int right = std::popcount(b);
    return left != right ? left < right : (lowest(a ^ b) & a) != 0;
  }
};

// visit(set) for each set of several of these dimensions, in no order.
template <class F>
void for_each_of_several(Dims dims, F&& visit) {
  for (Dims s = dims; s != 0; s = (s - 1) & dims) {
    if (std::popcount(s) > 1) visit(s);
  }
}

// visit(set) for each set of these dimensions that is not empty, small ones first, until it returns
// true.
template <class F>
void small_first(Dims dims, F&& visit) {
  for (Dims rest = dims; rest != 0; rest &= rest - 1) {
    if (visit(lowest(rest))) return;
  }
  std::vector<Dims> larger;
  for_each_of_several(dims, [&](Dims s) { larger.push_back(s); });
  std::sort(larger.begin(), larger.end(), SmallFirst());
  for (const Dims s : larger) {
    if (visit(s)) return;
  }
}

// Finds ranks of other failure domains along sets of mesh dimensions.
class Elsewhere {
 public:
  Elsewhere(const DeviceMesh& mesh, const FailureDomains& domains, DomainLevel level)
      : mesh_(mesh), domains_(domains), level_(level), several_(domains.count(level) > 1) {
    std::int64_t step = 1;
    for (std::size_t d = mesh.ndim(); d-- > 0;) {
      if (mesh.shape()[d] > 1) wide_.insert(wide_.begin(), {d, mesh.shape()[d], step});
      step *= mesh.shape()[d];
    }
  }

  // False: there is one domain alone, and nothing to find.
  [[nodiscard]] bool several_domains() const { return several_; }
  [[nodiscard]] Dims all() const { return (Dims{1} << wide_.size()) - 1; }
  [[nodiscard]] Dims replicated(std::span<const Placement> placements) const {
    Dims out = 0;
    for (std::size_t i = 0; i < wide_.size(); ++i) {
      if (placements[wide_[i].dim].is_replicate()) out |= Dims{1} << i;
    }
    return out;
  }

  // Of the ranks that differ from that of `place` along these dimensions alone, the next in another
  // domain.
  [[nodiscard]] std::optional<int> next(std::int64_t place, Dims dims) const {
    const std::vector<Dim> along = chosen(dims);
    const int here = domain(place);
    for (std::int64_t p = after(along, place); p != place; p = after(along, p)) {
      if (domain(p) != here) return mesh_.rank_at(p);
    }
    return {};
  }
  // The same for all places, in one walk through each group; -1 where there is none.
  [[nodiscard]] std::vector<int> all_next(Dims dims) {
    if (known_.empty()) {
      for (std::int64_t p = 0; p < mesh_.size(); ++p) known_.push_back(domain(p));
    }
    const std::vector<Dim> along = chosen(dims);
    constexpr int kNotYet = -2;
    std::vector<int> out(known_.size(), kNotYet);
    std::vector<std::size_t> group;
    for (std::size_t first = 0; first < out.size(); ++first) {
      if (out[first] != kNotYet) continue;
      group.clear();
      auto p = static_cast<std::int64_t>(first);
      do {
        group.push_back(static_cast<std::size_t>(p));
        p = after(along, p);
      } while (p != static_cast<std::int64_t>(first));
      const std::size_t n = group.size();
      const auto follower = [&](std::size_t i) { return group[i + 1 == n ? 0 : i + 1]; };
      std::size_t last = n;  // one behind the last whose follower is elsewhere
      while (last > 0 && known_[group[last - 1]] == known_[follower(last - 1)]) --last;
      for (std::size_t i = 0; i < n; ++i) {
        // Backwards from there, so that the follower's answer is there when it is this one's too.
        const std::size_t at = last > i ? last - i - 1 : last + n - i - 1;
        const std::size_t behind = follower(at);
        out[group[at]] = last == 0                             ? -1
                         : known_[behind] != known_[group[at]] ? mesh_.rank_at(as_place(behind))
                                                               : out[behind];
      }
    }
    return out;
  }

 private:
  struct Dim {
    std::size_t dim;
    std::int64_t size;
    std::int64_t step;  // in places
  };
  static std::int64_t as_place(std::size_t i) { return static_cast<std::int64_t>(i); }
  [[nodiscard]] std::vector<Dim> chosen(Dims dims) const {
    std::vector<Dim> out;
    for (std::size_t i = 0; i < wide_.size(); ++i) {
      if ((dims >> i & 1) != 0) out.push_back(wide_[i]);
    }
    return out;
  }
  // The place that follows in row-major order of these dimensions, and around its end.
  static std::int64_t after(const std::vector<Dim>& along, std::int64_t place) {
    for (std::size_t i = along.size(); i-- > 0;) {
      const Dim& d = along[i];
      const std::int64_t c = place / d.step % d.size;
      if (c + 1 < d.size) return place + d.step;
      place -= c * d.step;
    }
    return place;
  }
  [[nodiscard]] int domain(std::int64_t place) const {
    const int rank = mesh_.rank_at(place);
    if (rank >= domains_.world_size()) {
      throw InvalidArgument(text::no_host(mesh_.to_string(), rank, domains_.world_size()));
    }
    return domains_.domain_of(rank, level_);
  }

  const DeviceMesh& mesh_;
  const FailureDomains& domains_;
  const DomainLevel level_;
  const bool several_;
  std::vector<Dim> wide_;   // of more than one rank, in mesh order
  std::vector<int> known_;  // domains by place, once all were asked for
};

void sort_each(std::vector<std::vector<int>>& lists) {
  for (auto& list : lists) {
    std::sort(list.begin(), list.end());
    list.erase(std::unique(list.begin(), list.end()), list.end());
  }
}

}  // namespace

std::int64_t element_bytes_of(std::string_view dtype) {
  std::string known;
  for (const auto& [name, bytes] : kTypes) {
    if (name == dtype) return bytes;
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  throw InvalidArgument("dtype " + text::quoted(dtype) + ": use " + known);
}

TensorSpec parse_tensor_spec(std::string_view text) {
  const auto fail = [&]() {
    throw InvalidArgument(
        "tensor " + text::quoted(text) +
        ": write NAME=DTYPE[SIZES]:PLACEMENTS, such as w=f32[1024,512]:S(0),R, and "
        "@pp=1 behind it for one stage");
  };
  const auto equals = text.find('=');
  if (equals == std::string_view::npos || equals == 0) fail();
  TensorSpec out;
  out.name = std::string(text::trimmed(text.substr(0, equals)));
  const std::string_view rest = text.substr(equals + 1);
  const auto open = rest.find('[');
  const auto close = rest.find("]:");
  if (open == std::string_view::npos || close == std::string_view::npos || close < open) fail();
  out.dtype = std::string(text::trimmed(rest.substr(0, open)));
  out.element_bytes = element_bytes_of(out.dtype);
  const std::string_view sizes = text::trimmed(rest.substr(open + 1, close - open - 1));
  for (std::size_t from = 0; !sizes.empty();) {
    const auto comma = sizes.find(',', from);
    const auto size = text::number<std::int64_t>(text::trimmed(sizes.substr(from, comma - from)));
    if (!size) fail();
    out.shape.push_back(*size);
    if (comma == std::string_view::npos) break;
    from = comma + 1;
  }
  const std::string_view placed = rest.substr(close + 2);
  const auto at = placed.find('@');
  out.placements = parse_placements(placed.substr(0, at));
  for (std::size_t from = at == std::string_view::npos ? placed.size() : at + 1;
       from < placed.size();) {
    const auto comma = std::min(placed.find(',', from), placed.size());
    const std::string_view part = placed.substr(from, comma - from);
    const auto is = part.find('=');
    const auto coordinate = is == std::string_view::npos
                                ? std::nullopt
                                : text::number<std::int64_t>(text::trimmed(part.substr(is + 1)));
    if (!coordinate) fail();
    out.only.push_back({std::string(text::trimmed(part.substr(0, is))), *coordinate});
    from = comma + 1;
  }
  (void)checked_bytes(out);
  return out;
}

std::string to_string(std::span<const MeshCoordinate> only) {
  std::string out;
  for (const auto& [dim, coordinate] : only) {
    out += (out.empty() ? "" : ",") + dim + "=" + std::to_string(coordinate);
  }
  return out;
}

TensorPlace place_of(const DeviceMesh& mesh, const TensorSpec& tensor) {
  TensorPlace out{mesh, {}};
  if (tensor.only.empty()) {
    out.placements = tensor.placements;  // the layout checks their number
    return out;
  }
  std::vector<bool> fixed(mesh.ndim(), false);
  for (const auto& [dim, coordinate] : tensor.only) {
    const std::size_t d = mesh.dim(dim);
    if (fixed[d]) {
      throw InvalidArgument("dimension " + text::quoted(dim) + " is named twice: name it once");
    }
    fixed[d] = true;
    out.mesh = out.mesh.at(dim, coordinate);
  }
  const auto left = std::count(fixed.begin(), fixed.end(), false);
  if (std::ssize(tensor.placements) != left) {
    throw InvalidArgument(text::count(std::ssize(tensor.placements), "placement") + " for " +
                          text::count(left, "dimension") + " beside " + to_string(tensor.only) +
                          ": give one for each of those");
  }
  auto next = tensor.placements.begin();
  for (const bool is_fixed : fixed) {
    out.placements.push_back(is_fixed ? Placement::replicate() : *next++);
  }
  return out;
}

std::int64_t checked_bytes(const TensorSpec& tensor) {
  std::int64_t bytes = tensor.element_bytes;
  bool empty = false;
  for (const std::int64_t s : tensor.shape) {
    if (s < 0) {
      throw InvalidArgument("tensor " + text::quoted(tensor.name) + " has size " +
                            std::to_string(s) + ": sizes are at least 0");
    }
    empty = empty || s == 0;
    const auto next = text::product(bytes, std::max<std::int64_t>(s, 1));
    if (!next) {
      throw InvalidArgument("tensor " + text::quoted(tensor.name) + " of sizes " +
                            text::list<std::int64_t>(tensor.shape) +
                            " has more than 2^63-1 bytes: use smaller sizes");
    }
    bytes = *next;
  }
  return empty ? 0 : bytes;
}

std::vector<int> same_shard_ranks(const DeviceMesh& mesh, std::span<const Placement> placements,
                                  int rank) {
  check_fit(mesh, placements);
  if (!mesh.contains(rank)) {
    throw InvalidArgument("rank " + std::to_string(rank) + " is not in " + mesh.to_string());
  }
  std::vector<std::string> replicated;
  for (std::size_t d = 0; d < mesh.ndim(); ++d) {
    if (placements[d].is_replicate()) replicated.push_back(mesh.names()[d]);
  }
  if (replicated.empty()) return {rank};
  return mesh.slice(replicated, rank).ranks();
}

bool same_shard(const DeviceMesh& mesh, std::span<const Placement> placements, int a, int b) {
  check_fit(mesh, placements);
  const auto here = mesh.coordinate(a);
  const auto there = mesh.coordinate(b);
  if (!here || !there) return false;
  for (std::size_t d = 0; d < here->size(); ++d) {
    if ((*here)[d] != (*there)[d] && !placements[d].is_replicate()) return false;
  }
  return true;
}

std::optional<int> lender_of(const DeviceMesh& mesh, std::span<const Placement> placements,
                             const FailureDomains& domains, int rank, DomainLevel level) {
  check_fit(mesh, placements);
  const Elsewhere elsewhere(mesh, domains, level);
  const auto place = mesh.index_of(rank);
  const Dims dims = elsewhere.replicated(placements);
  std::optional<int> out;
  // Where all of them together reach nobody, no fewer do.
  if (!place || !elsewhere.several_domains() || !elsewhere.next(*place, dims)) return out;
  small_first(dims, [&](Dims set) {
    out = elsewhere.next(*place, set);
    return out.has_value();
  });
  return out;
}

std::vector<int> lenders_by_place(const DeviceMesh& mesh, std::span<const Placement> placements,
                                  const FailureDomains& domains, DomainLevel level) {
  check_fit(mesh, placements);
  Elsewhere elsewhere(mesh, domains, level);
  const Dims dims = elsewhere.replicated(placements);
  std::vector<int> out(static_cast<std::size_t>(mesh.size()), -1);
  if (!elsewhere.several_domains() || dims == 0) return out;
  const std::vector<int> reached = elsewhere.all_next(dims);
  auto open = std::count_if(reached.begin(), reached.end(), [](int rank) { return rank >= 0; });
  if (open == 0) return out;
  small_first(dims, [&](Dims set) {
    const std::vector<int> next = set == dims ? reached : elsewhere.all_next(set);
    for (std::size_t p = 0; p < out.size(); ++p) {
      if (out[p] >= 0 || next[p] < 0) continue;
      out[p] = next[p];
      --open;
    }
    return open == 0;
  });
  return out;
}

// A set S is the first to reach another domain among the sets of some Replicate dimensions if and
// only if no smaller set within S reaches one: then it is so for those of S, and else never.
std::vector<std::vector<int>> possible_lenders(const DeviceMesh& mesh,
                                               const FailureDomains& domains, DomainLevel level) {
  std::vector<std::vector<int>> out(static_cast<std::size_t>(domains.world_size()));
  Elsewhere elsewhere(mesh, domains, level);
  if (!elsewhere.several_domains()) return out;
  const auto places = static_cast<std::size_t>(mesh.size());
  const auto add = [&](std::size_t place, int at) {
    out[static_cast<std::size_t>(mesh.rank_at(static_cast<std::int64_t>(place)))].push_back(at);
  };
  std::vector<Dims> alone(places, 0);  // the dimensions that reach by themselves
  for (Dims rest = elsewhere.all(); rest != 0; rest &= rest - 1) {
    const std::vector<int> next = elsewhere.all_next(lowest(rest));
    for (std::size_t p = 0; p < places; ++p) {
      if (next[p] < 0) continue;
      alone[p] |= lowest(rest);
      add(p, next[p]);
    }
  }
  // Several together matter only where none of them does, and only if all of those together reach:
  // on hosts that lie in order they do not.
  std::set<Dims> others;
  for (std::size_t p = 0; p < places; ++p) {
    if (p == 0 || alone[p] != alone[p - 1]) others.insert(elsewhere.all() & ~alone[p]);
  }
  std::set<Dims, SmallFirst> larger;
  for (const Dims dims : others) {
    if (std::popcount(dims) < 2) continue;
    const std::vector<int> next = elsewhere.all_next(dims);
    bool reaches = false;
    for (std::size_t p = 0; p < places && !reaches; ++p) {
      reaches = next[p] >= 0 && (elsewhere.all() & ~alone[p]) == dims;
    }
    if (reaches) for_each_of_several(dims, [&](Dims s) { larger.insert(s); });
  }
  std::vector<std::vector<Dims>> found(larger.empty() ? 0 : places);
  for (const Dims set : larger) {
    const std::vector<int> next = elsewhere.all_next(set);
    for (std::size_t p = 0; p < places; ++p) {
      if (next[p] < 0 || (alone[p] & set) != 0) continue;
      if (std::any_of(found[p].begin(), found[p].end(),
                      [&](Dims smaller) { return (smaller & set) == smaller; })) {
        continue;
      }
      found[p].push_back(set);
      add(p, next[p]);
    }
  }
  sort_each(out);
  return out;
}

std::vector<std::vector<int>> lenders_of(const DeviceMesh& mesh,
                                         std::span<const TensorSpec> tensors,
                                         const FailureDomains& domains, DomainLevel level) {
  // A job has hundreds of tensors, and few sets of dimensions along which they are replicated.
  struct Alike {
    std::optional<DeviceMesh> mesh;
    std::vector<Layout> layouts;
  };
  std::map<std::pair<std::string, std::vector<bool>>, Alike> all_alike;
  for (const TensorSpec& tensor : tensors) {
    TensorPlace place = place_of(mesh, tensor);
    Layout layout(place.mesh.shape(), tensor.shape, place.placements);
    std::vector<bool> replicated;
    for (const Placement& p : layout.placements()) replicated.push_back(p.is_replicate());
    auto& alike = all_alike[{to_string(tensor.only), std::move(replicated)}];
    alike.mesh = std::move(place.mesh);
    auto& layouts = alike.layouts;
    if (!layouts.empty() && layouts[0].all_have_elements()) continue;  // tells all there is
    if (layout.all_have_elements()) layouts.clear();
    layouts.push_back(std::move(layout));
  }
  std::vector<std::vector<int>> out(static_cast<std::size_t>(domains.world_size()));
  std::vector<std::int64_t> coordinate(mesh.ndim());
  for (const auto& [kind, alike] : all_alike) {
    const DeviceMesh& part = *alike.mesh;
    const auto& layouts = alike.layouts;
    const std::vector<int> at = lenders_by_place(part, layouts[0].placements(), domains, level);
    const bool all_have = layouts[0].all_have_elements();
    for (std::int64_t place = 0; place < part.size(); ++place) {
      const int lender = at[static_cast<std::size_t>(place)];
      if (lender < 0) continue;
      std::int64_t rest = place;
      for (std::size_t d = part.ndim(); d-- > 0;) {
        coordinate[d] = rest % part.shape()[d];
        rest /= part.shape()[d];
      }
      if (all_have || std::any_of(layouts.begin(), layouts.end(), [&](const Layout& layout) {
            return layout.local_numel(coordinate) > 0;
          })) {
        out[static_cast<std::size_t>(part.rank_at(place))].push_back(lender);
      }
    }
  }
  sort_each(out);
  return out;
}

}  // namespace meshstage
