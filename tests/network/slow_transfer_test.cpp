// Transfers over a wire that is slow, and over one that is dead: silence tells them apart.
#include <chrono>
#include <memory>
#include <vector>

#include <meshstage/core/comm/gloo/tcp_transport.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/conformance/ranks.hpp"
#include "tests/network/proxied_store.hpp"
#include "tests/support/catch.hpp"

using namespace std::chrono_literals;
using namespace meshstage;
using namespace meshstage::testing;

namespace {

struct Pair {
  std::vector<std::shared_ptr<ProcessGroup>> groups{2};
  std::vector<std::shared_ptr<ProxiedStore>> wires;
};

Pair connected() {
  Pair pair;
  const auto store = std::make_shared<InMemoryStore>();
  for (int rank = 0; rank < 2; ++rank) {
    pair.wires.push_back(std::make_shared<ProxiedStore>(store, rank));
  }
  run_ranks_without_error(2, [&](int rank) {
    const auto i = static_cast<std::size_t>(rank);
    ConnectRequest request;
    request.job = "job";
    request.generation = 1;
    request.name = "data";
    request.rank = rank;
    request.world_size = 2;
    request.peers = {1 - rank};
    request.store_prefix = "job/net";
    pair.groups[i] =
        make_tcp_transport({})->connect_group(request, *pair.wires[i], Deadline::after(20s));
  });
  return pair;
}

}  // namespace

TEST_CASE("a transfer is waited for as long as bytes move, however slowly, and no longer") {
  constexpr auto kSilence = 2000ms;
  constexpr std::size_t kBytes = 400'000;
  auto [groups, wires] = connected();
  for (const auto& wire : wires) wire->slow(0ms, 50'000);  // eight seconds for all of it
  const std::vector<std::byte> source(kBytes, std::byte{3});
  std::vector<std::byte> target(kBytes);
  const auto receiving = groups[0]->receive(1, 7, target);
  const auto sending = groups[1]->send(0, 7, source);
  const auto start = std::chrono::steady_clock::now();
  CHECK_THROWS_AS(receiving->wait(Deadline::after(kSilence)), PeerSilent);
  receiving->wait_while_moving(kSilence);
  sending->wait_while_moving(kSilence);
  CHECK(std::chrono::steady_clock::now() - start > 2 * kSilence);
  CHECK(target == source);

  const auto never = groups[0]->receive(1, 7, target);
  for (const auto& wire : wires) {
    wire->vanish(0);
    wire->vanish(1);
  }
  const auto lost = std::chrono::steady_clock::now();
  CHECK_THROWS_AS(never->wait_while_moving(kSilence), PeerSilent);
  CHECK(std::chrono::steady_clock::now() - lost < 5 * kSilence);
  for (const auto& group : groups) group->close();
}

// The kernel wakes a sender when a third of its buffer is free, and that may be megabytes.
TEST_CASE("a send is waited for as long as the kernel's buffer drains, however slowly") {
  constexpr auto kSilence = 2000ms;
  constexpr std::size_t kBytes = 6'000'000;
  auto [groups, wires] = connected();
  const std::vector<std::byte> source(kBytes, std::byte{3});
  std::vector<std::byte> target(kBytes);
  {  // both ways fast, so that the kernel makes its buffers large
    const auto receiving = groups[0]->receive(1, 7, target);
    groups[1]->send(0, 7, source)->wait(Deadline::after(20s));
    receiving->wait(Deadline::after(20s));
  }
  for (const auto& wire : wires) wire->slow(0ms, 500'000);
  const auto receiving = groups[0]->receive(1, 8, target);
  const auto sending = groups[1]->send(0, 8, source);
  sending->wait_while_moving(kSilence);
  for (const auto& wire : wires) wire->slow(0ms, 0);
  receiving->wait_while_moving(kSilence);
  for (const auto& group : groups) group->close();
}
