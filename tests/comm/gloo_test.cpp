#include <chrono>
#include <cstdlib>
#include <filesystem>

#include <meshstage/core/comm/gloo/group.hpp>
#include <meshstage/core/comm/gloo/module.hpp>
#include <meshstage/core/comm/gloo/tcp_transport.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/comm/worker_process.hpp"
#include "tests/conformance/process_group_suite.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/own_process.hpp"
#include "tests/support/several_transport.hpp"

namespace {

using namespace std::chrono_literals;
using namespace meshstage;
using namespace meshstage::testing;
using Catch::Matchers::Contains;

TransportOf tcp() {
  return [](int /*rank*/) { return make_tcp_transport({}); };
}

}  // namespace

TEST_CASE("the Gloo group conforms") { process_group_conforms(tcp()); }

TEST_CASE("a Gloo group of several connections conforms") {
  const unsigned connections = GENERATE(2U, 5U);
  process_group_conforms([&](int /*rank*/) {
    return std::make_shared<test::SeveralTransport>(make_tcp_transport({}), connections);
  });
}

TEST_CASE("no generation of Gloo groups of several connections leaves a descriptor or a thread") {
  const TransportOf several = [](int /*rank*/) {
    return std::make_shared<test::SeveralTransport>(make_tcp_transport({}), 5);
  };
  (void)make_groups(several, 3, Linked::kAll);  // opens the module
  const int descriptors = count_descriptors();
  const int threads = count_threads();
  for (int generation = 0; generation < 4; ++generation) {
    const auto groups = make_groups(several, 3, Linked::kAll);
    CHECK(groups[0]->connections(1) == 5);
    CHECK(count_threads() > threads);
    if (generation % 2 == 1) groups[0]->abort(std::make_exception_ptr(Cancelled("over")));
  }
  CHECK(settle(count_descriptors, descriptors) == descriptors);
  CHECK(settle(count_threads, threads) == threads);
}

TEST_CASE("collectives over Gloo groups do what they say") { collectives_conform(tcp()); }

TEST_CASE("Gloo peers of another job, generation or world size are refused before data flows") {
  for (const std::string differs : {"job", "generation", "world size"}) {
    INFO(differs);
    InMemoryStore store;
    const auto errors = run_ranks(2, [&](int rank) {
      auto request = request_of("group", rank, 2, Linked::kAll);
      if (rank == 1 && differs == "job") request.job = "other";
      if (rank == 1 && differs == "generation") request.generation = 8;
      if (rank == 1 && differs == "world size") request.world_size = 3;
      (void)make_tcp_transport({})->connect_group(request, store, Deadline::after(20s));
    });
    // Who is first says so and hangs up; the other says so too, or hears the end.
    CHECK_THAT(errors[0] + errors[1], Contains("another " + differs));
    CHECK_FALSE(errors[0].empty());
    CHECK_FALSE(errors[1].empty());
  }
}

TEST_CASE(
    "forming a Gloo group names who did not come, and can be stopped, leaving nothing behind") {
  const int threads = count_threads();
  const int descriptors = count_network_descriptors();
  InMemoryStore store;
  const auto request = request_of("group", 0, 3, Linked::kAll);
  try {
    (void)make_tcp_transport({})->connect_group(request, store, Deadline::after(20ms));
    FAIL("connected to nobody");
  } catch (const Timeout& e) {
    CHECK(e.rank() == 1);
  }
  std::stop_source stop;
  stop.request_stop();
  CHECK_THROWS_AS(
      make_tcp_transport({})->connect_group(request, store, Deadline::after(20s), stop.get_token()),
      Cancelled);
  CHECK(settle(count_threads, threads) == threads);
  CHECK(settle(count_network_descriptors, descriptors) == descriptors);
}

TEST_CASE("the Gloo module is found beside the program; if not, every path tried is listed") {
  CHECK_THAT(gloo_version(), Contains("Gloo"));
  const TemporaryFolder folder;
  try {
    (void)gloo_module_table(folder.path());
    FAIL("found in an empty folder");
  } catch (const NotFound& e) {
    CHECK_THAT(e.what(), Contains(folder.path() + "/libmeshstage_gloo.so"));
    CHECK_THAT(e.what(), Contains("MESHSTAGE_MODULE_PATH"));
  }
  std::filesystem::create_symlink("/etc/hostname", folder.path() + "/libmeshstage_gloo.so");
  CHECK_THROWS_AS(gloo_module_table(folder.path()), NotFound);  // no library
}
