// A job whose Memberships live in one process, for the tests of them.
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/comm/in_process/fabric.hpp>
#include <meshstage/core/comm/membership.hpp>

#include "tests/conformance/ranks.hpp"
#include "tests/support/store_keys.hpp"

namespace meshstage::testing {

/// A job whose ranks are threads.
struct Job {
  /// \param run the number below this run's generations, which are counted from `run` + 1.
  explicit Job(int size, std::uint64_t run = 0) : world(size) {
    store->set("job/run/0", std::to_string(run));
  }
  MembershipOptions options(int rank) {
    MembershipOptions o;
    o.job = "job";
    o.rank = rank;
    o.world_size = world;
    o.store = store;
    o.transport = fabric.attach(rank);
    const int shift = world / 2;
    if (world > 1) o.data_peers = {(rank + shift) % world};
    if (world > 2 && (rank - shift + world) % world != o.data_peers[0]) {
      o.data_peers.push_back((rank - shift + world) % world);
    }
    return o;
  }
  std::unique_ptr<Membership> member(int rank) {
    return std::make_unique<Membership>(options(rank));
  }
  int world;
  InProcessFabric fabric;
  std::shared_ptr<InMemoryStore> store = std::make_shared<InMemoryStore>();
};

inline Deadline soon() { return Deadline::after(std::chrono::seconds(30)); }

/// All of `members` (null: not taking part) form a generation at once.
inline std::vector<Generation> form_all(const std::vector<std::unique_ptr<Membership>>& members,
                                        std::uint64_t seen = 0) {
  std::vector<Generation> generations(members.size());
  run_ranks_without_error(static_cast<int>(members.size()), [&](int r) {
    const auto i = static_cast<std::size_t>(r);
    if (members[i]) generations[i] = members[i]->form(seen, soon());
  });
  return generations;
}

inline std::string key(std::uint64_t generation, const std::string& what) {
  return test::generation_key("job", generation, what);
}
inline std::string claim_key(std::uint64_t generation) {
  return test::claim_key("job", generation);
}

}  // namespace meshstage::testing
