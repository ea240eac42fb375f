// Groups over NCCL as their callers see them, on the fakes.
#include <array>
#include <chrono>
#include <cstring>
#include <thread>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/comm/nccl_support.hpp"
#include "tests/conformance/process_group_suite.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace std::chrono_literals;
using collectives::Element;
using collectives::ReduceOp;
using test::bytes_of;
using test::Cuda;
using test::Nccl;
using testing::error_of;
using testing::run_ranks;
using testing::run_ranks_without_error;

namespace {

Deadline soon() { return Deadline::after(30s); }

}  // namespace

TEST_CASE("nccl: a group conforms") {
  const Nccl nccl;
  InProcessFabric fabric;
  testing::process_group_conforms(
      [&](int rank) { return test::with_host_memory(Nccl::transport(fabric, rank)); });
}

TEST_CASE("nccl: what the trainer's stream writes before a send is what arrives") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    Nccl nccl(seed);
    auto& cuda = nccl.cuda();
    InProcessFabric fabric;
    const auto stream = cuda.open_stream();
    const auto groups = testing::make_groups(
        [&](int rank) { return Nccl::transport(fabric, rank, stream); }, 2, testing::Linked::kAll);
    const auto out = cuda.tensor(5000, 1);
    const auto in = cuda.tensor(5000, 2);
    cuda.set(out, 9, stream);
    const auto receive = groups[1]->receive(0, 1, bytes_of(in));
    const auto send = groups[0]->send(1, 1, bytes_of(out));
    receive->wait(soon());
    send->wait(soon());
    CHECK(cuda.read(in) == std::vector<std::byte>(5000, std::byte{9}));
    for (const auto& group : groups) group->close();
    cuda.close_stream(stream);
  }
}

TEST_CASE("nccl: host memory, a stream in a graph's capture, and what NCCL lacks are refused") {
  Nccl nccl;
  auto& cuda = nccl.cuda();
  InProcessFabric fabric;
  const auto stream = cuda.open_stream();
  const auto groups = testing::make_groups(
      [&](int rank) { return Nccl::transport(fabric, rank, stream); }, 2, testing::Linked::kAll);
  auto& group = *groups[0];
  std::vector<std::byte> host(16);
  const auto device = cuda.tensor(16);
  CHECK_THROWS_AS(group.send(1, 1, host), InvalidArgument);
  CHECK_THROWS_AS(group.receive(1, 1, host), InvalidArgument);
  CHECK_THROWS_AS(collectives::broadcast(group, host, 0, soon()), InvalidArgument);
  CHECK_THROWS_AS(collectives::gather(group, host, {}, 1, soon()), InvalidArgument);
  CHECK_THROWS_AS(collectives::all_gather_bytes(group, host, soon()), InvalidArgument);
  CHECK_THROWS_AS(collectives::all_to_all(group, {}, {}, soon()), InvalidArgument);
  CHECK_THROWS_AS(
      collectives::all_reduce(group, bytes_of(device), Element::kI16, ReduceOp::kSum, soon()),
      InvalidArgument);
  const auto part = group.split(std::vector{0, 1});
  CHECK_THROWS_AS(collectives::barrier(*part, soon()), InvalidArgument);
  CHECK_THROWS_AS(
      collectives::all_reduce(*part, bytes_of(device), Element::kU8, ReduceOp::kSum, soon()),
      InvalidArgument);
  cuda.begin_capture(stream);
  CHECK_THROWS_AS(group.send(1, 1, bytes_of(device)), InvalidState);
  CHECK(cuda.end_capture(stream));
  // None of this has harmed the group.
  run_ranks_without_error(2, [&](int rank) { collectives::barrier(*groups[rank == 0 ? 0 : 1]); });
  for (const auto& one : groups) one->close();
  cuda.close_stream(stream);
}

TEST_CASE("nccl: every way to end a group ends a collective at every rank") {
  Nccl nccl;
  InProcessFabric fabric;
  const auto groups = Nccl::groups(fabric, 3);
  const auto tensors =
      std::array{nccl.cuda().tensor(800), nccl.cuda().tensor(800), nccl.cuda().tensor(800)};
  // Rank 1 takes no part, but does what the section says.
  const auto errors_when = [&](const std::function<void()>& rank_1, Deadline deadline) {
    return run_ranks(3, [&](int rank) {
      if (rank == 1) return rank_1();
      const auto me = static_cast<std::size_t>(rank);
      collectives::all_reduce(*groups[me], bytes_of(tensors[me]), Element::kF32, ReduceOp::kSum,
                              deadline);
    });
  };
  const auto begin_with = [](const std::vector<std::string>& errors, const std::string& text) {
    INFO(errors[0] << " | " << errors[2]);
    CHECK(errors[0].find(text) == 0);
    CHECK(errors[2].find(text) == 0);
  };
  SECTION("a death") {
    begin_with(errors_when([&] { fabric.kill(1); }, soon()), "peer lost: rank 1");
  }
  SECTION("silence") {
    begin_with(errors_when([&] { fabric.report_silent(1); }, soon()), "peer silent: rank 1");
  }
  SECTION("an abort names the rank that called it") {
    begin_with(
        errors_when([&] { groups[1]->abort(std::make_exception_ptr(InvalidState("enough"))); },
                    soon()),
        "peer lost: rank 1 ended the group: invalid state: enough");
  }
  SECTION("an abort for a lost rank stays what it is") {
    begin_with(
        errors_when(
            [&] { groups[1]->abort(std::make_exception_ptr(make_error<PeerLost>("rank 7", 7))); },
            soon()),
        "peer lost: rank 7");
  }
  SECTION("a departure in order") {
    begin_with(errors_when([&] { groups[1]->close(); }, soon()), "peer lost: rank 1");
  }
  SECTION("a deadline") {
    begin_with(errors_when([] {}, Deadline::after(20ms)), "peer silent: ");
    CHECK(error_of([&] { collectives::barrier(*groups[1], soon()); }).find("peer silent") == 0);
  }
  SECTION("another collective") {
    const auto other = [&] {
      collectives::all_reduce(*groups[1], bytes_of(tensors[1]), Element::kF64, ReduceOp::kSum,
                              soon());
    };
    const auto errors = errors_when(other, soon());
    for (const auto& error : errors)
      CHECK(error.find("rank 1 called another") != std::string::npos);
  }
  for (const auto& group : groups) group->close();
  // The same process forms a new group, which is as good as the first.
  InProcessFabric fresh;
  const auto again = Nccl::groups(fresh, 3);
  for (std::size_t r = 0; r < 3; ++r) {
    const std::array<float, 200> ones = [] {
      std::array<float, 200> all{};
      all.fill(1);
      return all;
    }();
    nccl.cuda().write(tensors[r], std::as_bytes(std::span(ones)));
  }
  run_ranks_without_error(3, [&](int rank) {
    const auto me = static_cast<std::size_t>(rank);
    collectives::all_reduce(*again[me], bytes_of(tensors[me]), Element::kF32, ReduceOp::kSum,
                            soon());
  });
  const auto sum = nccl.cuda().read(tensors[2]);
  float first = 0;
  std::memcpy(&first, sum.data(), sizeof(first));
  CHECK(first == 3.0F);
  for (const auto& group : again) group->close();
}

TEST_CASE("nccl: a rank that leaves behind its last collective takes nobody's result") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Nccl nccl(seed);
    InProcessFabric fabric;
    const auto groups = Nccl::groups(fabric, 3);
    const auto tensors =
        std::array{nccl.cuda().tensor(800), nccl.cuda().tensor(800), nccl.cuda().tensor(800)};
    run_ranks_without_error(3, [&](int rank) {
      const auto me = static_cast<std::size_t>(rank);
      collectives::all_reduce(*groups[me], bytes_of(tensors[me]), Element::kI32, ReduceOp::kSum,
                              soon());
      groups[me]->close();
    });
  }
}

TEST_CASE("nccl: work that was issued and aborted never counts as done") {
  Nccl nccl;
  auto& cuda = nccl.cuda();
  InProcessFabric fabric;
  const auto groups = Nccl::groups(fabric, 2);
  const auto out = cuda.tensor(1000, 1);
  const auto in = cuda.tensor(1000, 2);
  // Both ends have posted it, and NCCL has it, but it does not happen.
  Nccl::fake().hold(true);
  const auto receive = groups[1]->receive(0, 1, bytes_of(in));
  const auto send = groups[0]->send(1, 1, bytes_of(out));
  while (Nccl::fake().issued() < 2)
    CHECK_THROWS_AS(receive->wait(Deadline::after(1ms)), PeerSilent);
  groups[0]->abort(std::make_exception_ptr(Cancelled("as the test wants it")));
  CHECK(error_of([&] { send->wait(soon()); }).find("cancelled") == 0);
  CHECK(error_of([&] { receive->wait(soon()); }).find("peer lost: rank 0") == 0);
  // Their events report success now.
  for (const auto& group : groups) group->close();
  CHECK(error_of([&] { send->wait(soon()); }).find("cancelled") == 0);
  CHECK(error_of([&] { receive->wait(soon()); }).find("peer lost: rank 0") == 0);
  CHECK(cuda.read(in) == std::vector<std::byte>(1000, std::byte{2}));
}

TEST_CASE("nccl: every call to NCCL fails in turn; all ranks end, and the next group works") {
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
      collectives::all_reduce(*group, bytes_of(tensors[me]), Element::kI32, ReduceOp::kSum, soon());
      auto one = rank == 0 ? group->send(1, 1, bytes_of(tensors[me]))
                           : group->receive(0, 1, bytes_of(tensors[me]));
      one->wait(soon());
      group->close();
    });
  };
  const std::vector<std::string> none{"", ""};
  REQUIRE(use() == none);
  constexpr int kSystemError = 2;
  std::size_t failures = 0;
  bool harmless = false;
  for (std::uint64_t n = 1; n < 400 && !harmless; ++n) {
    const auto before = Nccl::fake().calls();
    Nccl::fake().fail_call(n, kSystemError);
    const auto errors = use();
    if (errors != none) ++failures;
    INFO("call " << n << ": " << errors[0] << " | " << errors[1]);
    harmless = Nccl::fake().calls() - before < n;  // fewer calls than that were made
    Nccl::fake().fail_call(0, 0);
    CHECK(Nccl::fake().communicators() == 0);
    CHECK(use() == none);
    n += failures / 20;  // the polls of a state are many, and alike
  }
  CHECK(failures > 20);
}
