#include "tools/drill/hosts.hpp"

#include <algorithm>
#include <cstddef>
#include <set>

namespace meshstage::tools::drill {

Seating after(const Fault& fault, Seating before) {
  return {fault.ranks > 0 ? fault.ranks : before.ranks, before.moved + (fault.rotate ? 1 : 0),
          before.swapped != fault.swap};
}

int host_of(const Arguments& arguments, int rank, Seating seating) {
  const int host = (rank / arguments.ranks_per_host + seating.moved) % arguments.host_count();
  const int neighbour = host ^ 1;
  return seating.swapped && neighbour < arguments.host_count() ? neighbour : host;
}

std::optional<int> left_behind(const Arguments& arguments, Seating before, Seating after) {
  std::set<int> within_reach;
  for (int rank = 0; rank < after.ranks; ++rank) {
    within_reach.insert(host_of(arguments, rank, after));
  }
  const auto reached = [&](int rank) {
    return within_reach.contains(host_of(arguments, rank, before));
  };
  const Holders holders = arguments.holders(before.ranks);
  for (int owner = 0; owner < before.ranks; ++owner) {
    const auto& copies = holders[static_cast<std::size_t>(owner)];
    if (!reached(owner) && std::none_of(copies.begin(), copies.end(), reached)) return owner;
  }
  return std::nullopt;
}

}  // namespace meshstage::tools::drill
