#include <meshstage/core/comm/in_process/fabric.hpp>

#include <atomic>
#include <chrono>
#include <thread>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/rank_tree.hpp>

#include "tests/conformance/control_links_suite.hpp"
#include "tests/conformance/process_group_suite.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/several_transport.hpp"

namespace {

using namespace std::chrono_literals;
using namespace meshstage;
using namespace meshstage::testing;
using Lines = std::vector<std::string>;

}  // namespace

TEST_CASE("the in-process group conforms") {
  InProcessFabric fabric;
  process_group_conforms([&](int rank) { return fabric.attach(rank); });
}

TEST_CASE("an in-process group of several connections conforms") {
  const unsigned connections = GENERATE(1U, 2U, 5U);
  InProcessFabric fabric;
  process_group_conforms([&](int rank) {
    return std::make_shared<test::SeveralTransport>(fabric.attach(rank), connections);
  });
}

TEST_CASE("collectives over in-process groups do what they say") {
  InProcessFabric fabric;
  collectives_conform([&](int rank) { return fabric.attach(rank); });
}

TEST_CASE("in-process links conform") {
  InProcessFabric fabric;
  control_links_conform([&](int rank) { return fabric.attach(rank); });
}

TEST_CASE("a killed rank is lost to its peers' groups and links, and can do nothing more") {
  InProcessFabric fabric;
  std::vector<std::shared_ptr<Transport>> transports;
  for (int r = 0; r < 3; ++r) transports.push_back(fabric.attach(r));
  const TransportOf of = [&](int r) { return transports[static_cast<std::size_t>(r)]; };
  const auto groups = make_groups(of, 3, Linked::kAll);
  const auto links = make_links(of, 3, Linked::kAll);
  Recorder recorder;
  links[0]->set_handlers(recorder.handlers());
  links[1]->send(0, bytes_of("alive"));
  std::vector<std::byte> target(10);
  const auto pending = groups[0]->receive(1, 1, target);
  const auto unrelated = groups[0]->receive(2, 1, target);
  const auto of_the_dead = groups[1]->receive(2, 1, target);
  fabric.kill(1);
  try {
    pending->wait(Deadline::after(20s));
    FAIL("received from a dead rank");
  } catch (const PeerLost& e) {
    CHECK(e.rank() == 1);
  }
  REQUIRE(recorder.wait_for(2));
  CHECK(recorder.seen() == Lines{"1: alive", "1 lost: end of file"});
  CHECK_THROWS_AS(of_the_dead->wait(Deadline::after(20s)), Cancelled);
  CHECK_THROWS_AS(groups[1]->send(2, 1, target), Cancelled);
  InMemoryStore store;
  CHECK_THROWS_AS(transports[1]->connect_group(request_of("g", 1, 3, Linked::kAll), store,
                                               Deadline::after(20s)),
                  Cancelled);
  // The others go on.
  const std::vector<std::byte> source(10, std::byte{7});
  const auto send = groups[2]->send(0, 1, source);
  unrelated->wait(Deadline::after(20s));
  send->wait(Deadline::after(20s));
  CHECK(target == source);
}

TEST_CASE("who leaves by an agreed error waits for the others, but not for those that are lost") {
  constexpr int kWorld = 3;
  InProcessFabric fabric;
  std::vector<std::shared_ptr<Transport>> transports;
  for (int r = 0; r < kWorld; ++r) transports.push_back(fabric.attach(r));
  const TransportOf of = [&](int r) { return transports[static_cast<std::size_t>(r)]; };
  const auto groups = make_groups(of, kWorld, Linked::kAll);
  std::atomic<int> came = 0;
  std::vector<int> came_before_return(kWorld);
  run_ranks_without_error(kWorld, [&](int rank) {
    const auto me = static_cast<std::size_t>(rank);
    for (int seen = came; seen < rank; seen = came) came.wait(seen);  // one after the other
    ++came;
    came.notify_all();
    collectives::leave_together(*groups[me], Deadline::after(20s));
    came_before_return[me] = came;
  });
  CHECK(came_before_return == std::vector<int>(kWorld, kWorld));
  groups[1]->close();
  CHECK_NOTHROW(collectives::leave_together(*groups[0], Deadline::after(20s)));
  CHECK_NOTHROW(collectives::leave_together(*groups[2], Deadline::after(20s)));
}

TEST_CASE("a frozen rank neither sends nor receives until it is thawed") {
  InProcessFabric fabric;
  std::vector<std::shared_ptr<Transport>> transports{fabric.attach(0), fabric.attach(1)};
  const TransportOf of = [&](int r) { return transports[static_cast<std::size_t>(r)]; };
  const auto groups = make_groups(of, 2, Linked::kAll);
  const auto links = make_links(of, 2, Linked::kAll);
  Recorder zero;
  Recorder one;
  links[0]->set_handlers(zero.handlers());
  links[1]->set_handlers(one.handlers());
  fabric.freeze(1);
  links[0]->send(1, bytes_of("are you there"));
  links[1]->send(0, bytes_of("no"));
  const std::vector<std::byte> source(10, std::byte{7});
  std::vector<std::byte> target(10);
  const auto send = groups[1]->send(0, 1, source);
  const auto receive = groups[0]->receive(1, 1, target);
  CHECK_THROWS_AS(receive->wait(Deadline::after(5ms)), PeerSilent);
  CHECK(zero.seen().empty());
  CHECK(one.seen().empty());

  SECTION("thawed in time, nothing is missing") {
    fabric.thaw(1);
    receive->wait(Deadline::after(20s));
    send->wait(Deadline::after(20s));
    CHECK(target == source);
    REQUIRE(zero.wait_for(1));
    REQUIRE(one.wait_for(1));
    CHECK(zero.seen() == Lines{"1: no"});
    CHECK(one.seen() == Lines{"0: are you there"});
  }
  SECTION("given up as silent, it finds closed doors when it wakes, and writes nowhere") {
    fabric.report_silent(1);
    REQUIRE(zero.wait_for(1));
    CHECK(zero.seen() == Lines{"1 lost: silent"});
    groups[0]->close();
    fabric.thaw(1);
    REQUIRE(one.wait_for(2));
    CHECK(one.seen() == Lines{"0: are you there", "0 lost: end of file"});
    CHECK_THROWS_AS(send->wait(Deadline::after(20s)), PeerLost);
    CHECK(target == std::vector<std::byte>(10));
    CHECK(zero.seen().size() == 1);
  }
}

TEST_CASE("peers of another job, generation or world size do not connect") {
  for (const std::string differs : {"job", "generation", "world size"}) {
    INFO(differs);
    InProcessFabric fabric;
    InMemoryStore store;
    const auto errors = run_ranks(2, [&](int rank) {
      auto request = request_of("links", rank, 2, Linked::kAll);
      if (rank == 1 && differs == "job") request.job = "other";
      if (rank == 1 && differs == "generation") request.generation = 8;
      if (rank == 1 && differs == "world size") request.world_size = 3;
      (void)fabric.attach(rank)->connect_links(request, store, Deadline::after(50ms));
    });
    CHECK_THAT(errors[0] + errors[1], Catch::Matchers::Contains("another " + differs));
  }
}

TEST_CASE("the control tree connects all ranks, each with at most three, by the shortest way") {
  for (const int world : {1, 2, 3, 7, 64, 1000}) {
    for (int r = 0; r < world; ++r) {
      for (const int child : tree::children(r, world)) REQUIRE(tree::parent(child) == r);
      REQUIRE(tree::neighbours(r, world).size() <= 3);
    }
  }
  for (int from = 0; from < 15; ++from) {
    REQUIRE(tree::next_hop(from, from) == from);
    for (int to = 0; to < 15; ++to) {
      int at = from;
      int hops = 0;
      while (at != to) {
        const int next = tree::next_hop(at, to);
        const auto around = tree::neighbours(at, 15);
        REQUIRE(std::find(around.begin(), around.end(), next) != around.end());
        at = next;
        REQUIRE(++hops <= 6);
      }
    }
  }
}
