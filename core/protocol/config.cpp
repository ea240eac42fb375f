#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/rank_tree.hpp>
#include <meshstage/core/protocol/config.hpp>
#include <meshstage/core/protocol/wire_impl.hpp>

namespace meshstage::protocol {

bool Config::holds(int holder, int owner) const {
  if (owner < 0 || owner >= world_size) return false;
  const auto& of_owner = holders[static_cast<std::size_t>(owner)];
  return std::find(of_owner.begin(), of_owner.end(), holder) != of_owner.end();
}

std::vector<std::vector<int>> default_holders(int world_size) {
  std::vector<std::vector<int>> holders(static_cast<std::size_t>(std::max(world_size, 0)));
  if (world_size < 2) return holders;
  for (int rank = 0; rank < world_size; ++rank) {
    holders[static_cast<std::size_t>(rank)] = {(rank + world_size / 2) % world_size};
  }
  return holders;
}

namespace {

/// The most bytes of claims to one step that any message of this job has: each image and replica
/// once in memory and once in a file, of a child of the root and all ranks below it. A replica that
/// borrows is in no file.
struct ClaimsOfAStep {
  int child = 0;
  std::size_t bytes = 0;
};
ClaimsOfAStep most_claims_of_a_step(const std::vector<std::vector<int>>& holders,
                                    const std::vector<std::vector<int>>& lenders) {
  const std::size_t world = holders.size();
  std::vector<std::size_t> lends(world, wire::kClaimBytes);  // a claim that borrows nothing
  for (const auto& of_borrower : lenders) {
    for (const int lender : of_borrower)
      lends[static_cast<std::size_t>(lender)] += wire::kLoanBytes;
  }
  std::vector<std::size_t> below(world);
  for (std::size_t owner = 0; owner < world; ++owner) {
    const std::size_t borrows = lends[owner] + wire::kLoanBytes * lenders[owner].size();
    below[owner] += 2 * borrows;
    for (const int holder : holders[owner]) {
      below[static_cast<std::size_t>(holder)] += std::max(borrows, 2 * lends[owner]);
    }
  }
  ClaimsOfAStep most;
  for (std::size_t rank = world; rank-- > 1;) {
    const auto parent = tree::parent(static_cast<int>(rank));
    below[static_cast<std::size_t>(*parent)] += below[rank];
    if (*parent == 0 && below[rank] > most.bytes) most = {static_cast<int>(rank), below[rank]};
  }
  return most;
}

}  // namespace

std::shared_ptr<const Config> make_config(int rank, int world_size,
                                          std::vector<std::vector<int>> holders, Rules rules,
                                          std::vector<std::vector<int>> lenders,
                                          std::uint64_t persist_every, bool any_world) {
  const auto require = [](bool good, const std::string& why) {
    if (!good) throw InvalidArgument("replication: " + why);
  };
  require(world_size >= 1, "the world size is " + std::to_string(world_size) + ", not positive");
  require(rank >= 0 && rank < world_size,
          "rank " + std::to_string(rank) + " is not in [0, " + std::to_string(world_size) + ")");
  if (holders.empty()) holders = default_holders(world_size);
  lenders.resize(lenders.empty() ? static_cast<std::size_t>(world_size) : lenders.size());
  require(world_size <= kMostRanks, std::to_string(world_size) + " ranks; at most " +
                                        std::to_string(kMostRanks) + " are supported");
  auto config = std::make_shared<Config>();
  // Those for whom this rank is in the list, ascending.
  const auto check = [&](const std::vector<std::vector<int>>& lists, const std::string& what) {
    require(static_cast<int>(lists.size()) == world_size,
            what + "s are given for " + std::to_string(lists.size()) + " ranks, the world has " +
                std::to_string(world_size));
    std::vector<int> mine;
    for (int owner = 0; owner < world_size; ++owner) {
      auto list = lists[static_cast<std::size_t>(owner)];
      const std::string whose = "a " + what + " of rank " + std::to_string(owner);
      for (const int other : list) {
        require(other >= 0 && other < world_size,
                whose + " is rank " + std::to_string(other) + ", which does not exist");
        require(other != owner, whose + " is that rank itself");
        if (other == rank) mine.push_back(owner);
      }
      std::sort(list.begin(), list.end());
      require(std::adjacent_find(list.begin(), list.end()) == list.end(),
              whose + " is named twice");
    }
    return mine;
  };
  config->wards = check(holders, "holder");
  config->borrowers = check(lenders, "lender");
  // Of one step: of each rank's own image and its replicas.
  std::size_t claims = static_cast<std::size_t>(world_size);
  for (const auto& list : holders) claims += list.size();
  constexpr std::size_t kMost = kMostClaimBytes / wire::kClaimBytes;
  require(claims <= kMost, std::to_string(world_size) + " ranks with their replicas are " +
                               std::to_string(claims) + " images of one step; at most " +
                               std::to_string(kMost) +
                               " are supported; keep fewer replicas of each rank");
  const ClaimsOfAStep most = most_claims_of_a_step(holders, lenders);
  require(most.bytes <= kMostClaimBytes,
          "what rank " + std::to_string(most.child) +
              " and the ranks below it may have of one step, in memory and on disk, would take " +
              std::to_string(most.bytes) + " bytes of a message; at most " +
              std::to_string(kMostClaimBytes) +
              " are supported; keep fewer replicas of each rank, spread them over more holders, "
              "or borrow from fewer lenders");
  config->rank = rank;
  config->world_size = world_size;
  config->holders = std::move(holders);
  config->lenders = std::move(lenders);
  config->rules = rules;
  config->persist_every = persist_every;
  config->any_world = any_world;
  config->parent = tree::parent(rank).value_or(-1);
  config->children = tree::children(rank, world_size);
  auto& peers = config->peers;
  peers = config->holders[static_cast<std::size_t>(rank)];
  for (const auto* more : {&config->wards, &config->lenders[static_cast<std::size_t>(rank)],
                           &config->borrowers, &config->children}) {
    peers.insert(peers.end(), more->begin(), more->end());
  }
  if (config->parent >= 0) peers.push_back(config->parent);
  std::set<int> data(config->wards.begin(), config->wards.end());
  for (const int ward : config->wards) {
    const auto& beside = config->holders[static_cast<std::size_t>(ward)];
    data.insert(beside.begin(), beside.end());
  }
  for (const auto* more : {&config->holders[static_cast<std::size_t>(rank)],
                           &config->lenders[static_cast<std::size_t>(rank)], &config->borrowers}) {
    data.insert(more->begin(), more->end());
  }
  data.erase(rank);
  config->data_peers.assign(data.begin(), data.end());
  std::sort(peers.begin(), peers.end());
  peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
  return config;
}

}  // namespace meshstage::protocol
