#include <meshstage/mesh/survive.hpp>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/text.hpp>

namespace meshstage {
namespace {

// n over k: exact below 2^53.
double combinations(int n, int k) {
  double out = 1;
  for (int i = 1; i <= k; ++i) out = out * (n - k + i) / i;
  return out;
}

// The sets of domains in which the parts of one thing lie: the smallest of them, and the distinct
// ones small enough to be counted.
class DomainSets {
 public:
  DomainSets(int domains, const SurviveOptions& options)
      : domains_(domains), options_(options), small_(static_cast<std::size_t>(most()) + 1) {}

  // The domains of one part, in any order, repeated or not. `rank` has the part.
  void add(std::vector<int>& set, int rank) {
    std::sort(set.begin(), set.end());
    set.erase(std::unique(set.begin(), set.end()), set.end());
    if (!lost_rank_ || set.size() < first_.size() ||
        (set.size() == first_.size() && set < first_)) {
      first_ = set;
      lost_rank_ = rank;
    }
    if (static_cast<int>(set.size()) <= most()) {
      auto& same_size = small_[set.size()];
      // Neighbouring ranks often have the same set.
      if (same_size.size() < set.size() ||
          !std::equal(set.begin(), set.end(),
                      same_size.end() - static_cast<std::ptrdiff_t>(set.size()))) {
        same_size.insert(same_size.end(), set.begin(), set.end());
      }
    }
  }

  Survival result(std::string name) {
    Survival out;
    out.name = std::move(name);
    out.always_survived = lost_rank_ ? static_cast<int>(first_.size()) - 1 : domains_;
    out.first_lost = first_;
    out.lost_rank = lost_rank_;
    std::vector<std::vector<int>> sets;
    for (std::size_t size = 1; size < small_.size(); ++size) {
      for (std::size_t i = 0; i + size <= small_[size].size(); i += size) {
        const auto from = small_[size].begin() + static_cast<std::ptrdiff_t>(i);
        sets.emplace_back(from, from + static_cast<std::ptrdiff_t>(size));
      }
      std::vector<int>().swap(small_[size]);
    }
    std::sort(sets.begin(), sets.end());
    sets.erase(std::unique(sets.begin(), sets.end()), sets.end());
    for (int lost = 1; lost <= most(); ++lost) out.counts.push_back(count(sets, lost));
    return out;
  }

 private:
  [[nodiscard]] int most() const { return std::min(options_.count_up_to, domains_); }

  [[nodiscard]] LossCount count(const std::vector<std::vector<int>>& sets, int lost) const {
    LossCount out{lost, combinations(domains_, lost), 0, Knowledge::kNotEnumerated};
    const auto smallest = first_.size();
    const auto k = static_cast<std::size_t>(lost);
    if (!lost_rank_ || k < smallest) {
      out.survived = out.sets;
      out.how = Knowledge::kProven;
    } else if (k == smallest) {
      const auto fatal =
          std::count_if(sets.begin(), sets.end(), [&](const auto& set) { return set.size() == k; });
      out.survived = out.sets - static_cast<double>(fatal);
      out.how = Knowledge::kProven;
    } else if (lost == domains_) {
      out.how = Knowledge::kProven;  // nothing is left
    } else {
      double work = 0;
      for (const auto& set : sets) {
        if (set.size() <= k) {
          work += combinations(domains_ - static_cast<int>(set.size()),
                               lost - static_cast<int>(set.size()));
        }
      }
      if (work > static_cast<double>(options_.enumerate_at_most)) return out;
      out.survived = out.sets - static_cast<double>(supersets(sets, k));
      out.how = Knowledge::kEnumerated;
    }
    return out;
  }

  // How many sets of k domains contain one of `sets`: all are listed, each counted once.
  [[nodiscard]] std::size_t supersets(const std::vector<std::vector<int>>& sets,
                                      std::size_t k) const {
    std::vector<std::vector<int>> all;
    for (const auto& set : sets) {
      if (set.size() > k) continue;
      std::vector<int> others;
      for (int d = 0; d < domains_; ++d) {
        if (!std::binary_search(set.begin(), set.end(), d)) others.push_back(d);
      }
      // Choose k - |set| of the others: positions ascending.
      std::vector<std::size_t> chosen(k - set.size());
      for (std::size_t i = 0; i < chosen.size(); ++i) chosen[i] = i;
      if (chosen.size() > others.size()) continue;
      for (bool more = true; more;) {
        std::vector<int> lost = set;
        for (const std::size_t c : chosen) lost.push_back(others[c]);
        std::sort(lost.begin(), lost.end());
        all.push_back(std::move(lost));
        more = false;
        for (std::size_t i = chosen.size(); i-- > 0;) {
          if (chosen[i] + (chosen.size() - i) < others.size()) {
            ++chosen[i];
            for (std::size_t j = i + 1; j < chosen.size(); ++j) chosen[j] = chosen[j - 1] + 1;
            more = true;
            break;
          }
        }
      }
    }
    std::sort(all.begin(), all.end());
    return static_cast<std::size_t>(std::unique(all.begin(), all.end()) - all.begin());
  }

  int domains_;
  SurviveOptions options_;
  std::vector<int> first_;
  std::optional<int> lost_rank_;
  std::vector<std::vector<int>> small_;  // by size of set: sets one behind the other
};

// Goes through the coordinates of the dimensions that are (not) replicated.
class Coordinates {
 public:
  Coordinates(const DeviceMesh& mesh, const Placements& placements, bool replicated) {
    std::int64_t step = 1;
    for (std::size_t d = mesh.ndim(); d-- > 0;) {
      if (placements[d].is_replicate() == replicated) dims_.push_back({d, mesh.shape()[d], step});
      step *= mesh.shape()[d];
    }
  }
  // visit(place) for each; `place` is the part of the row-major index that these dimensions make.
  // `coordinate` is kept up to date.
  template <class F>
  void for_each(std::vector<std::int64_t>& coordinate, F&& visit) const {
    std::int64_t place = 0;
    for (const Dim& d : dims_) coordinate[d.dim] = 0;
    for (;;) {
      visit(place);
      std::size_t i = 0;
      for (; i < dims_.size(); ++i) {
        auto& c = coordinate[dims_[i].dim];
        place += dims_[i].step;
        if (++c < dims_[i].size) break;
        place -= c * dims_[i].step;
        c = 0;
      }
      if (i == dims_.size()) return;
    }
  }

 private:
  struct Dim {
    std::size_t dim;
    std::int64_t size;
    std::int64_t step;
  };
  std::vector<Dim> dims_;
};

Survival survive_tensor(const FailureDomains& domains, const Holders& holders,
                        const DeviceMesh& mesh, const TensorSpec& tensor, const Layout& layout,
                        const SurviveOptions& options) {
  DomainSets sets(domains.count(options.level), options);
  const Coordinates parts(mesh, layout.placements(), false);
  const Coordinates copies(mesh, layout.placements(), true);
  const bool none_empty = layout.all_have_elements();
  std::vector<std::int64_t> coordinate(mesh.ndim(), 0);
  std::vector<std::int64_t> unused(mesh.ndim(), 0);
  std::vector<int> set;
  std::vector<int> ranks;
  parts.for_each(coordinate, [&](std::int64_t part) {
    if (!none_empty && layout.local_numel(coordinate) == 0) return;
    set.clear();
    ranks.clear();
    copies.for_each(unused, [&](std::int64_t copy) { ranks.push_back(mesh.rank_at(part + copy)); });
    for (const int rank : ranks) set.push_back(domains.domain_of(rank, options.level));
    // One that has it elsewhere is enough for all to have one: lender_of() looks at them all.
    const bool borrowed =
        options.borrowed && std::any_of(ranks.begin(), ranks.end(), [&](int rank) {
          return domains.domain_of(rank, *options.borrowed) !=
                 domains.domain_of(ranks.front(), *options.borrowed);
        });
    if (!borrowed) {
      for (const int rank : ranks) {
        for (const int h : holders[static_cast<std::size_t>(rank)]) {
          set.push_back(domains.domain_of(h, options.level));
        }
      }
    }
    sets.add(set, ranks.front());
  });
  return sets.result(tensor.name);
}

}  // namespace

SurviveReport survive(const FailureDomains& domains, const Holders& holders, const DeviceMesh& mesh,
                      std::span<const TensorSpec> tensors, const SurviveOptions& options) {
  const int world = domains.world_size();
  check_holders(holders, world);
  for (std::int64_t i = 0; i < mesh.size(); ++i) {
    if (mesh.rank_at(i) >= world) {
      throw InvalidArgument(text::no_host(mesh.to_string(), mesh.rank_at(i), world));
    }
  }
  SurviveReport out;
  out.domains = domains.count(options.level);
  DomainSets sets(out.domains, options);
  std::vector<std::vector<int>> lenders(static_cast<std::size_t>(world));
  if (options.borrowed) lenders = lenders_of(mesh, tensors, domains, *options.borrowed);
  std::vector<int> set;
  for (int r = 0; r < world; ++r) {
    const int here = domains.domain_of(r, options.level);
    set.assign(1, here);
    for (const int h : holders[static_cast<std::size_t>(r)]) {
      set.push_back(domains.domain_of(h, options.level));
    }
    sets.add(set, r);
    for (const int lender : lenders[static_cast<std::size_t>(r)]) {
      set.assign({here, domains.domain_of(lender, options.level)});
      sets.add(set, r);
    }
  }
  out.ranks = sets.result("");
  // Tensors differ only by which dimensions replicate, and those with empty parts by how they are
  // cut. A job has many tensors, and few kinds.
  using Kind = std::tuple<std::string, std::vector<std::int64_t>, std::vector<int>>;
  std::map<Kind, Survival> known;
  for (const TensorSpec& tensor : tensors) {
    const TensorPlace place = place_of(mesh, tensor);
    const Layout layout(place.mesh.shape(), tensor.shape, place.placements);
    Kind kind;
    auto& [part, sizes, cuts] = kind;
    part = to_string(tensor.only);
    if (!layout.all_have_elements()) sizes = layout.tensor_shape();
    for (const Placement& p : layout.placements()) {
      cuts.push_back(p.is_replicate() ? -2 : p.is_shard() && !sizes.empty() ? p.dim() : -1);
    }
    auto it = known.find(kind);
    if (it == known.end()) {
      it =
          known.emplace(kind, survive_tensor(domains, holders, place.mesh, tensor, layout, options))
              .first;
    }
    out.tensors.push_back(it->second);
    out.tensors.back().name = tensor.name;
  }
  return out;
}

}  // namespace meshstage
