#include <meshstage/mesh/partners.hpp>

#include <algorithm>
#include <random>
#include <set>

#include <meshstage/core/error/error.hpp>
#include "tests/support/catch.hpp"

using namespace meshstage;

namespace {

FailureDomains sized(const std::vector<int>& hosts, int hosts_per_rack = 0) {
  std::vector<Host> out;
  int rank = 0;
  for (std::size_t h = 0; h < hosts.size(); ++h) {
    Host host{"h" + std::to_string(h), "", {}};
    if (hosts_per_rack > 0) host.rack = "r" + std::to_string(static_cast<int>(h) / hosts_per_rack);
    for (int i = 0; i < hosts[h]; ++i) host.ranks.push_back(rank++);
    out.push_back(host);
  }
  return FailureDomains::from_hosts(out);
}

std::string why(const FailureDomains& domains, PartnerOptions options) {
  try {
    (void)make_holders(domains, options);
  } catch (const InvalidArgument& e) {
    return e.what();
  }
  return "no error";
}

int most_wards(const Holders& holders) {
  int most = 0;
  for (const auto& w : wards_of(holders)) most = std::max(most, static_cast<int>(w.size()));
  return most;
}

}  // namespace

TEST_CASE("half the world away is the default, in even and odd worlds, for one copy and several") {
  CHECK(make_holders(FailureDomains::uniform(4, 1)) == Holders{{2}, {3}, {0}, {1}});
  CHECK(make_holders(FailureDomains::uniform(5, 1)) == Holders{{2}, {3}, {4}, {0}, {1}});
  CHECK(make_holders(FailureDomains::uniform(6, 1), {.copies = 2})[1] == std::vector<int>{3, 5});
  CHECK(make_holders(FailureDomains::uniform(4, 1), {.copies = 3})[2] == std::vector<int>{3, 0, 1});
  CHECK(make_holders(FailureDomains::uniform(5, 1),
                     {.policy = PartnerPolicy::kRing, .copies = 2})[4] == std::vector<int>{0, 1});
}

TEST_CASE("every policy gives valid holders and as many wards as copies for 1 to W-1 copies") {
  for (int world = 2; world <= 12; ++world) {
    for (int copies = 1; copies < world; ++copies) {
      for (const auto policy : {PartnerPolicy::kHalfShift, PartnerPolicy::kRing,
                                PartnerPolicy::kAcrossHosts, PartnerPolicy::kCliques}) {
        const auto holders =
            make_holders(FailureDomains::uniform(world, 1), {.policy = policy, .copies = copies});
        INFO(world << " ranks, " << copies << " copies, " << to_string(policy));
        CHECK_NOTHROW(check_holders(holders, world));
        for (const auto& h : holders) CHECK(static_cast<int>(h.size()) == copies);
        CHECK(most_wards(holders) == copies);
      }
    }
  }
}

TEST_CASE("copies across hosts and racks are on different ones, however uneven they are") {
  std::mt19937 random(5);
  int uneven = 0;
  for (int round = 0; round < 400; ++round) {
    std::vector<int> hosts(2 + random() % 6);
    for (int& h : hosts) h = 1 + static_cast<int>(random() % 5);
    const auto level = round % 2 == 0 ? DomainLevel::kHost : DomainLevel::kRack;
    const auto domains = sized(hosts, 1 + static_cast<int>(random() % 3));
    if (domains.count(level) < 2) continue;
    const int copies =
        1 + static_cast<int>(random() % static_cast<unsigned>(domains.count(level) - 1));
    const auto holders =
        make_holders(domains, {.policy = level == DomainLevel::kHost ? PartnerPolicy::kAcrossHosts
                                                                     : PartnerPolicy::kAcrossRacks,
                               .copies = copies});
    check_holders(holders, domains.world_size());
    std::vector<int> size(static_cast<std::size_t>(domains.count(level)), 0);
    for (int r = 0; r < domains.world_size(); ++r) {
      std::set<int> seen{domains.domain_of(r, level)};
      for (const int h : holders[static_cast<std::size_t>(r)]) {
        CHECK(seen.insert(domains.domain_of(h, level)).second);
      }
      CHECK(static_cast<int>(seen.size()) == copies + 1);
      ++size[static_cast<std::size_t>(domains.domain_of(r, level))];
    }
    const int largest = *std::max_element(size.begin(), size.end());
    if (largest * (copies + 1) <= domains.world_size()) {
      CHECK(most_wards(holders) == copies);
    } else {
      ++uneven;
      if (copies == 1) {
        const int others = domains.world_size() - largest;
        CHECK(most_wards(holders) <= (largest + others - 1) / others + 1);
      }
    }
  }
  CHECK(uneven > 20);
}

TEST_CASE("cliques hold each other's copies on different hosts") {
  const auto domains = sized({2, 2, 2});
  const auto holders = make_holders(domains, {.policy = PartnerPolicy::kCliques, .copies = 2});
  CHECK(holders == Holders{{2, 4}, {3, 5}, {4, 0}, {5, 1}, {0, 2}, {1, 3}});
  // A remainder makes some cliques larger; still every rank has `copies` wards.
  const auto odd = make_holders(sized({2, 2, 1}), {.policy = PartnerPolicy::kCliques, .copies = 1});
  CHECK(odd == Holders{{2}, {3}, {4}, {1}, {0}});
}

TEST_CASE("a policy that cannot be satisfied says why and what would") {
  const auto one_host = FailureDomains::uniform(4, 4);
  CHECK_THAT(why(one_host, {.policy = PartnerPolicy::kAcrossHosts}),
             contains_text("needs 2 hosts, there is 1: use half-shift or ring"));
  CHECK_THAT(why(sized({2, 2, 2}), {.policy = PartnerPolicy::kAcrossHosts, .copies = 3}),
             contains_text("needs 4 hosts, there are 3: use at most 2 copies"));
  CHECK_THAT(why(sized({2, 2}), {.policy = PartnerPolicy::kAcrossRacks}),
             contains_text("across-hosts"));
  CHECK_THAT(why(sized({5, 1}), {.policy = PartnerPolicy::kAcrossHosts, .max_wards = 4}),
             contains_text("host h0 has 5 of 6 ranks") && contains_text("allow 5"));
  CHECK_THAT(why(sized({3, 1, 1}), {.policy = PartnerPolicy::kCliques}),
             contains_text("host h0 has 3 of 5 ranks") && contains_text("use across-hosts"));
  CHECK_THAT(why(sized({2, 2, 2}), {.policy = PartnerPolicy::kCliques, .copies = 3}),
             contains_text("use at most 2 copies"));
  CHECK_THAT(why(one_host, {.policy = PartnerPolicy::kCliques}), contains_text("half-shift"));
  CHECK_THAT(why(one_host, {.copies = 4}), contains_text("use 1 to 3"));
  CHECK_THAT(why(one_host, {.copies = -1}), contains_text("use 1 to 3"));
  CHECK_THAT(why(FailureDomains::uniform(1, 1), {}), contains_text("use 0"));
  CHECK_THAT(why(one_host, {.copies = 3, .max_wards = 2}), contains_text("at least as many"));
  CHECK(make_holders(FailureDomains::uniform(1, 1), {.copies = 0}) == Holders{{}});
}

TEST_CASE("policies are parsed as they are printed") {
  for (const auto p : {PartnerPolicy::kHalfShift, PartnerPolicy::kRing, PartnerPolicy::kAcrossHosts,
                       PartnerPolicy::kAcrossRacks, PartnerPolicy::kCliques}) {
    CHECK(parse_partner_policy(to_string(p)) == p);
  }
  CHECK_THROWS_AS(parse_partner_policy("best"), InvalidArgument);
  for (const auto l : {DomainLevel::kRank, DomainLevel::kHost, DomainLevel::kRack}) {
    CHECK(parse_domain_level(to_string(l)) == l);
  }
  CHECK_THROWS_AS(parse_domain_level("room"), InvalidArgument);
}

TEST_CASE("explicit holders are checked") {
  CHECK_THROWS_AS(check_holders({{1}}, 2), InvalidArgument);
  CHECK_THROWS_AS(check_holders({{0}, {0}}, 2), InvalidArgument);
  CHECK_THROWS_AS(check_holders({{1, 1}, {0}}, 2), InvalidArgument);
  CHECK_THROWS_AS(check_holders({{2}, {0}}, 2), InvalidArgument);
  CHECK_NOTHROW(check_holders({{1}, {}}, 2));
}

TEST_CASE("failure domains are made of host names, sizes or lists, and checked") {
  const std::vector<std::string> names{"b", "a", "b", "c", "a"};
  const auto domains = FailureDomains::from_host_names(names);
  CHECK(domains.hosts() == 3);
  CHECK(domains.host(0) == Host{"b", "", {0, 2}});
  CHECK(domains.host_of(4) == 1);
  CHECK_THROWS_AS(domains.rack_of(0), InvalidState);
  CHECK_THROWS_AS(domains.count(DomainLevel::kRack), InvalidArgument);
  const auto uniform = FailureDomains::uniform(10, 4, 2);
  CHECK(uniform.hosts() == 3);
  CHECK(uniform.racks() == 2);
  CHECK(uniform.rack_of(9) == 1);
  CHECK(uniform.domain_name(1, DomainLevel::kRack) == "rack1");
  const auto bad = [](std::vector<Host> hosts) -> std::string {
    try {
      (void)FailureDomains::from_hosts(std::move(hosts));
    } catch (const InvalidArgument& e) {
      return e.what();
    }
    return "no error";
  };
  CHECK_THAT(bad({}), contains_text("no hosts"));
  CHECK_THAT(bad({{"a", "", {}}}), contains_text("'a' has no ranks"));
  CHECK_THAT(bad({{"a", "", {0}}, {"a", "", {1}}}), contains_text("'a' is listed twice"));
  CHECK_THAT(bad({{"a", "", {0, 1}}, {"b", "", {1}}}),
             contains_text("rank 1 is on host 'a' and again on"));
  CHECK_THAT(bad({{"a", "", {0, 2}}}), contains_text("ranks must be 0..1"));
  CHECK_THAT(bad({{"a", "r", {0}}, {"b", "", {1}}}), contains_text("'b' has no rack"));
  CHECK_THROWS_AS(FailureDomains::uniform(0, 1), InvalidArgument);
  CHECK_THROWS_AS(FailureDomains::uniform(1, 0), InvalidArgument);
}
