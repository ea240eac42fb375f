// An allocation fails on the thread that owns an NCCL communicator (ms-nccl), each in turn, on the
// fakes. A program of its own: it replaces operator new.
#include <array>
#include <chrono>
#include <string>
#include <vector>

#include <meshstage/core/comm/collectives.hpp>

#include "tests/comm/nccl_support.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/failing_new.hpp"

using namespace meshstage;
using namespace std::chrono_literals;
using test::bytes_of;
using test::Nccl;
using testing::run_ranks;

namespace {

Deadline soon() { return Deadline::after(10s); }

}  // namespace

TEST_CASE("nccl: no memory on the communicator's thread ends the group, and the next one works") {
  Nccl nccl;
  const auto use = [&] {
    InProcessFabric fabric;
    const auto tensors = std::array{nccl.cuda().tensor(80), nccl.cuda().tensor(80)};
    InMemoryStore store;
    return run_ranks(2, [&](int rank) {
      const auto me = static_cast<std::size_t>(rank);
      const auto group =
          Nccl::transport(fabric, rank)
              ->connect_group(testing::request_of("group", rank, 2, testing::Linked::kAll), store,
                              soon());
      collectives::all_reduce(*group, bytes_of(tensors[me]), collectives::Element::kI32,
                              collectives::ReduceOp::kSum, soon());
      group->close();
    });
  };
  const std::vector<std::string> none{"", ""};
  REQUIRE(use() == none);
  int nth = 1;
  for (bool failed = true; failed; ++nth) {
    test::fail_allocation("ms-nccl", nth);
    const auto began = Deadline::Clock::now();
    const auto errors = use();
    failed = test::allocation_failed();
    INFO("allocation " << nth << ": " << errors[0] << " | " << errors[1]);
    CHECK(Deadline::Clock::now() - began < 8s);  // nobody waited for a deadline
    CHECK(Nccl::fake().communicators() == 0);
    CHECK(use() == none);
  }
  CHECK(nth > 2);
}
