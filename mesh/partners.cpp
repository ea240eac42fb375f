#include <meshstage/mesh/partners.hpp>

#include <algorithm>
#include <array>
#include <numeric>
#include <queue>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/text.hpp>

namespace meshstage {
namespace {

constexpr std::array<std::pair<std::string_view, PartnerPolicy>, 5> kPolicies{
    {{"half-shift", PartnerPolicy::kHalfShift},
     {"ring", PartnerPolicy::kRing},
     {"across-hosts", PartnerPolicy::kAcrossHosts},
     {"across-racks", PartnerPolicy::kAcrossRacks},
     {"cliques", PartnerPolicy::kCliques}}};

// Ranks sorted by rack, host and number, and the domains of one level among them: each is one run.
struct Order {
  std::vector<int> ranks;
  std::vector<int> start;  // of each run; one more at the end
  int largest = 0;         // ranks of the largest domain
  int largest_domain = 0;

  Order(const FailureDomains& domains, DomainLevel level) {
    std::vector<std::pair<int, int>> hosts;  // rack, host
    for (int h = 0; h < domains.hosts(); ++h) {
      hosts.emplace_back(domains.racks() > 0 ? domains.rack_of(domains.host(h).ranks[0]) : 0, h);
    }
    std::sort(hosts.begin(), hosts.end());
    ranks.reserve(static_cast<std::size_t>(domains.world_size()));
    int domain = -1;
    const auto close = [&] {
      if (domain < 0) return;
      const int size = static_cast<int>(ranks.size()) - start.back();
      if (size > largest) {
        largest = size;
        largest_domain = domain;
      }
    };
    for (const auto& [rack, host] : hosts) {
      std::vector<int> here = domains.host(host).ranks;
      std::sort(here.begin(), here.end());
      const int next = domains.domain_of(here[0], level);
      if (next != domain) {
        close();
        domain = next;
        start.push_back(static_cast<int>(ranks.size()));
      }
      ranks.insert(ranks.end(), here.begin(), here.end());
    }
    close();
    start.push_back(static_cast<int>(ranks.size()));
  }
  [[nodiscard]] int domains() const { return static_cast<int>(start.size()) - 1; }
  [[nodiscard]] int at(std::int64_t place) const { return ranks[static_cast<std::size_t>(place)]; }
};

// Shifts floor(k*W/(c+1)): any two differ by at least floor(W/(c+1)), the last from W as well.
std::int64_t shift(std::int64_t k, std::int64_t world, std::int64_t copies) {
  return k * world / (copies + 1);
}

// Every rank's copies by shifts along the order. If no run is longer than W/(c+1), a rank and its
// holders are in different runs; every rank has exactly `copies` wards.
Holders by_shifts(const Order& order, int copies) {
  const auto world = static_cast<std::int64_t>(order.ranks.size());
  Holders out(order.ranks.size());
  for (std::int64_t p = 0; p < world; ++p) {
    auto& mine = out[static_cast<std::size_t>(order.at(p))];
    mine.reserve(static_cast<std::size_t>(copies));
    for (int k = 1; k <= copies; ++k)
      mine.push_back(order.at((p + shift(k, world, copies)) % world));
  }
  return out;
}

// Where one run is longer than that: the owners of the longest runs choose first, each takes the
// runs that hold least for their size, and within a run the ranks take turns.
Holders by_load(const Order& order, int copies) {
  const int n = order.domains();
  const auto size = [&](int d) {
    return order.start[static_cast<std::size_t>(d) + 1] - order.start[static_cast<std::size_t>(d)];
  };
  std::vector<int> longest_first(static_cast<std::size_t>(n));
  std::iota(longest_first.begin(), longest_first.end(), 0);
  std::stable_sort(longest_first.begin(), longest_first.end(),
                   [&](int a, int b) { return size(a) > size(b); });
  std::vector<std::int64_t> load(static_cast<std::size_t>(n), 0);
  const auto fuller = [&](int a, int b) {  // by load / size, then by number
    const std::int64_t left = load[static_cast<std::size_t>(a)] * size(b);
    const std::int64_t right = load[static_cast<std::size_t>(b)] * size(a);
    return left != right ? left > right : a > b;
  };
  // A run is out of the queue while its load changes, so that the order inside stays true.
  std::priority_queue<int, std::vector<int>, decltype(fuller)> queue(fuller);
  for (int d = 0; d < n; ++d) queue.push(d);
  Holders out(order.ranks.size());
  std::vector<int> aside;
  for (const int d : longest_first) {
    for (int p = order.start[static_cast<std::size_t>(d)];
         p < order.start[static_cast<std::size_t>(d) + 1]; ++p) {
      auto& mine = out[static_cast<std::size_t>(order.at(p))];
      aside.clear();
      while (static_cast<int>(mine.size()) < copies) {
        const int to = queue.top();
        queue.pop();
        aside.push_back(to);
        if (to == d) continue;
        const std::int64_t turn = load[static_cast<std::size_t>(to)]++ % size(to);
        mine.push_back(order.at(order.start[static_cast<std::size_t>(to)] + turn));
      }
      for (const int a : aside) queue.push(a);
    }
  }
  return out;
}

std::string copies_words(std::int64_t n) {
  return std::to_string(n) + (n == 1 ? " copy" : " copies");
}

std::string largest_words(const FailureDomains& domains, DomainLevel level, const Order& order) {
  return std::string(to_string(level)) + " " + domains.domain_name(order.largest_domain, level) +
         " has " + std::to_string(order.largest) + " of " + std::to_string(domains.world_size()) +
         " ranks";
}

Holders spread(const FailureDomains& domains, DomainLevel level, const PartnerOptions& options) {
  const std::string level_name(to_string(level));
  const std::string policy(to_string(options.policy));
  if (level == DomainLevel::kRack && domains.racks() == 0) {
    throw InvalidArgument("policy " + policy +
                          " needs the racks of the hosts: give every host a rack, or use "
                          "across-hosts");
  }
  const Order order(domains, level);
  if (order.domains() <= options.copies) {
    const int most = order.domains() - 1;
    throw InvalidArgument(
        "policy " + policy + " with " + copies_words(options.copies) + " needs " +
        std::to_string(options.copies + 1) + " " + level_name + "s, there " +
        (order.domains() == 1 ? "is 1" : "are " + std::to_string(order.domains())) + ": " +
        (most > 0 ? "use at most " + copies_words(most) + ", or more " + level_name + "s"
                  : "use half-shift or ring, which stay on one " + level_name + ", or more " +
                        level_name + "s"));
  }
  if (std::int64_t{order.largest} * (options.copies + 1) <= domains.world_size()) {
    return by_shifts(order, options.copies);
  }
  Holders out = by_load(order, options.copies);
  if (options.max_wards > 0) {
    std::vector<int> wards(out.size(), 0);
    for (const auto& mine : out) {
      for (const int h : mine) ++wards[static_cast<std::size_t>(h)];
    }
    const int most = *std::max_element(wards.begin(), wards.end());
    if (most > options.max_wards) {
      throw InvalidArgument("policy " + policy + ": " + largest_words(domains, level, order) +
                            ", so a rank elsewhere would keep copies of " + std::to_string(most) +
                            ", more than the limit of " + std::to_string(options.max_wards) +
                            ": allow " + std::to_string(most) + ", or even out the " + level_name +
                            "s");
    }
  }
  return out;
}

Holders cliques(const FailureDomains& domains, const PartnerOptions& options) {
  const Order order(domains, DomainLevel::kHost);
  const auto world = static_cast<std::int64_t>(domains.world_size());
  const std::int64_t number = world / (options.copies + 1);
  // Members of a clique lie `number` places apart, so a longer run would have two of one.
  if (order.largest > number) {
    const std::int64_t most = world / order.largest - 1;
    throw InvalidArgument(
        "policy cliques with " + copies_words(options.copies) +
        " makes cliques on different hosts, but " +
        largest_words(domains, DomainLevel::kHost, order) + ", more than the " +
        text::count(number, "clique") + ": " +
        (most > 0 ? "use at most " + copies_words(most) + ", or " : std::string("use ")) +
        (domains.hosts() > options.copies ? "across-hosts" : "half-shift"));
  }
  Holders out(order.ranks.size());
  for (std::int64_t p = 0; p < world; ++p) {
    const std::int64_t first = p % number;
    const std::int64_t members = (world - first + number - 1) / number;
    auto& mine = out[static_cast<std::size_t>(order.at(p))];
    for (int k = 1; k <= options.copies; ++k) {
      mine.push_back(order.at(first + (p / number + k) % members * number));
    }
  }
  return out;
}

}  // namespace

std::string_view to_string(PartnerPolicy policy) noexcept {
  for (const auto& [name, value] : kPolicies) {
    if (value == policy) return name;
  }
  return {};
}

PartnerPolicy parse_partner_policy(std::string_view text) {
  for (const auto& [name, value] : kPolicies) {
    if (name == text) return value;
  }
  throw InvalidArgument("partner policy " + text::quoted(text) +
                        ": use half-shift, ring, across-hosts, across-racks or cliques");
}

Holders make_holders(const FailureDomains& domains, const PartnerOptions& options) {
  const int world = domains.world_size();
  if (options.copies < 0 || options.copies >= world) {
    throw InvalidArgument(
        std::to_string(options.copies) + " copies of each of " + text::count(world, "rank") +
        (world == 1 ? ": one rank alone has nobody to hold a copy, use 0"
                    : ": use 1 to " + std::to_string(world - 1) + " (0: no protection)"));
  }
  if (options.max_wards > 0 && options.max_wards < options.copies) {
    throw InvalidArgument("at most " + text::count(options.max_wards, "ward") +
                          " a rank are fewer than the " + std::to_string(options.copies) +
                          " copies of each rank: allow at least as many");
  }
  Holders out(static_cast<std::size_t>(world));
  if (options.copies == 0) return out;
  switch (options.policy) {
    case PartnerPolicy::kAcrossHosts:
      return spread(domains, DomainLevel::kHost, options);
    case PartnerPolicy::kAcrossRacks:
      return spread(domains, DomainLevel::kRack, options);
    case PartnerPolicy::kCliques:
      return cliques(domains, options);
    case PartnerPolicy::kHalfShift:
    case PartnerPolicy::kRing:
      break;
  }
  for (std::int64_t r = 0; r < world; ++r) {
    auto& mine = out[static_cast<std::size_t>(r)];
    mine.reserve(static_cast<std::size_t>(options.copies));
    for (int k = 1; k <= options.copies; ++k) {
      const std::int64_t by =
          options.policy == PartnerPolicy::kRing ? k : shift(k, world, options.copies);
      mine.push_back(static_cast<int>((r + by) % world));
    }
  }
  return out;
}

void check_holders(const Holders& holders, int world_size) {
  if (holders.size() != static_cast<std::size_t>(world_size)) {
    throw InvalidArgument("holders are listed for " + std::to_string(holders.size()) +
                          " ranks, the world has " + std::to_string(world_size) +
                          ": one list for each rank");
  }
  for (std::size_t r = 0; r < holders.size(); ++r) {
    std::vector<int> mine = holders[r];
    std::sort(mine.begin(), mine.end());
    const auto fail = [&](int h, const std::string& why) {
      throw InvalidArgument("rank " + std::to_string(r) + " has holder " + std::to_string(h) + why);
    };
    for (std::size_t i = 0; i < mine.size(); ++i) {
      if (mine[i] < 0 || mine[i] >= world_size) {
        fail(mine[i], ": ranks are 0.." + std::to_string(world_size - 1));
      }
      if (mine[i] == static_cast<int>(r)) fail(mine[i], ", itself: name another rank");
      if (i > 0 && mine[i] == mine[i - 1]) fail(mine[i], " twice: name each once");
    }
  }
}

std::vector<std::vector<int>> wards_of(const Holders& holders) {
  std::vector<std::vector<int>> out(holders.size());
  for (std::size_t r = 0; r < holders.size(); ++r) {
    for (const int h : holders[r]) out[static_cast<std::size_t>(h)].push_back(static_cast<int>(r));
  }
  return out;
}

}  // namespace meshstage
