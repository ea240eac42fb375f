#include <meshstage/mesh/failure_domains.hpp>

#include <limits>
#include <unordered_map>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/text.hpp>

namespace meshstage {

std::string_view to_string(DomainLevel level) noexcept {
  switch (level) {
    case DomainLevel::kRank:
      return "rank";
    case DomainLevel::kHost:
      return "host";
    case DomainLevel::kRack:
      return "rack";
  }
  return {};
}

DomainLevel parse_domain_level(std::string_view text) {
  for (const auto level : {DomainLevel::kRank, DomainLevel::kHost, DomainLevel::kRack}) {
    if (text == to_string(level)) return level;
  }
  throw InvalidArgument("failure domain " + text::quoted(text) + ": use rank, host or rack");
}

FailureDomains FailureDomains::from_hosts(std::vector<Host> hosts) {
  FailureDomains out;
  std::size_t world = 0;
  std::unordered_map<std::string, int> host_numbers;
  std::unordered_map<std::string, int> rack_numbers;
  for (const Host& host : hosts) {
    if (!host_numbers.emplace(host.name, 0).second) {
      throw InvalidArgument("host " + text::quoted(host.name) +
                            " is listed twice: put all its ranks into one entry");
    }
    if (host.ranks.empty()) {
      throw InvalidArgument("host " + text::quoted(host.name) + " has no ranks: leave it out");
    }
    if (host.rack.empty() != hosts.front().rack.empty()) {
      throw InvalidArgument("host " +
                            text::quoted(host.rack.empty() ? host.name : hosts.front().name) +
                            " has no rack but others have: give a rack to all hosts or to none");
    }
    world += host.ranks.size();
  }
  if (world == 0) throw InvalidArgument("no hosts: give at least one with its ranks");
  if (world > static_cast<std::size_t>(std::numeric_limits<int>::max())) {
    throw InvalidArgument("more ranks than fit a rank number");
  }
  out.host_of_.assign(world, -1);
  for (std::size_t h = 0; h < hosts.size(); ++h) {
    for (const int r : hosts[h].ranks) {
      if (r < 0 || static_cast<std::size_t>(r) >= world) {
        throw InvalidArgument("host " + text::quoted(hosts[h].name) + " has rank " +
                              std::to_string(r) + " but all hosts together have " +
                              text::count(static_cast<std::int64_t>(world), "rank") +
                              ": ranks must be 0.." + std::to_string(world - 1) + ", each once");
      }
      int& slot = out.host_of_[static_cast<std::size_t>(r)];
      if (slot >= 0) {
        throw InvalidArgument("rank " + std::to_string(r) + " is on host " +
                              text::quoted(hosts[static_cast<std::size_t>(slot)].name) +
                              " and again on host " + text::quoted(hosts[h].name) +
                              ": list every rank once");
      }
      slot = static_cast<int>(h);
    }
    if (hosts[h].rack.empty()) continue;
    const auto [it, added] =
        rack_numbers.emplace(hosts[h].rack, static_cast<int>(out.racks_.size()));
    if (added) out.racks_.push_back(hosts[h].rack);
    out.rack_of_host_.push_back(it->second);
  }
  out.hosts_ = std::move(hosts);
  return out;
}

FailureDomains FailureDomains::from_host_names(std::span<const std::string> name_of_rank) {
  std::vector<Host> hosts;
  std::unordered_map<std::string_view, std::size_t> numbers;
  for (std::size_t r = 0; r < name_of_rank.size(); ++r) {
    const auto [it, added] = numbers.emplace(name_of_rank[r], hosts.size());
    if (added) hosts.push_back({name_of_rank[r], "", {}});
    hosts[it->second].ranks.push_back(static_cast<int>(r));
  }
  return from_hosts(std::move(hosts));
}

FailureDomains FailureDomains::uniform(int world_size, int ranks_per_host, int hosts_per_rack) {
  if (world_size < 1 || ranks_per_host < 1 || hosts_per_rack < 0) {
    throw InvalidArgument(text::count(world_size, "rank") + ", " + std::to_string(ranks_per_host) +
                          " to a host, " + std::to_string(hosts_per_rack) +
                          " hosts to a rack: the first two must be at least 1, the last at least 0"
                          " (no racks)");
  }
  std::vector<Host> hosts;
  for (int r = 0; r < world_size;) {
    const auto h = static_cast<int>(hosts.size());
    Host host{"host" + std::to_string(h), "", {}};
    if (hosts_per_rack > 0) host.rack = "rack" + std::to_string(h / hosts_per_rack);
    for (int i = 0; i < ranks_per_host && r < world_size; ++i) host.ranks.push_back(r++);
    hosts.push_back(std::move(host));
  }
  return from_hosts(std::move(hosts));
}

int FailureDomains::rack_of(int rank) const {
  if (racks_.empty()) throw InvalidState("the racks of the hosts are not known");
  return rack_of_host_[static_cast<std::size_t>(host_of(rank))];
}

int FailureDomains::count(DomainLevel level) const {
  switch (level) {
    case DomainLevel::kRank:
      return world_size();
    case DomainLevel::kHost:
      return hosts();
    case DomainLevel::kRack:
      break;
  }
  if (racks_.empty()) {
    throw InvalidArgument("the racks of the hosts are not known: give every host a rack");
  }
  return racks();
}

int FailureDomains::domain_of(int rank, DomainLevel level) const {
  switch (level) {
    case DomainLevel::kRank:
      return rank;
    case DomainLevel::kHost:
      return host_of(rank);
    case DomainLevel::kRack:
      break;
  }
  return rack_of(rank);
}

std::string FailureDomains::domain_name(int domain, DomainLevel level) const {
  switch (level) {
    case DomainLevel::kRank:
      return "rank " + std::to_string(domain);
    case DomainLevel::kHost:
      return host(domain).name;
    case DomainLevel::kRack:
      break;
  }
  return rack_name(domain);
}

}  // namespace meshstage
