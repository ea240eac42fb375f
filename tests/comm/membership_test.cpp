// Membership over the in-process fabric: who joins and dies when is up to the test.
#include <array>
#include <atomic>
#include <chrono>
#include <thread>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/comm/in_process/fabric.hpp>
#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/comm/several_connections.hpp>
#include <meshstage/core/comm/wrapped_store.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/comm/membership_job.hpp"
#include "tests/conformance/control_links_suite.hpp"
#include "tests/support/catch.hpp"

namespace {

using namespace std::chrono_literals;
using namespace meshstage;
using namespace meshstage::testing;
using Catch::Matchers::Contains;

}  // namespace

TEST_CASE("ranks that come in any order form one generation, and can talk in it") {
  for (const int world : {1, 2, 3, 4, 7}) {
    INFO("world " << world);
    Job job(world);
    std::vector<std::unique_ptr<Membership>> members;
    for (int r = 0; r < world; ++r) members.push_back(job.member(r));
    const auto generations = form_all(members);
    std::vector<std::int64_t> sums(static_cast<std::size_t>(world));
    run_ranks_without_error(world, [&](int r) {
      const auto i = static_cast<std::size_t>(r);
      std::vector<std::int64_t> one{1};
      collectives::all_reduce(*generations[i].training, std::span(one), collectives::ReduceOp::kSum,
                              soon());
      sums[i] = one[0];
    });
    for (std::size_t i = 0; i < generations.size(); ++i) {
      CHECK(generations[i].number == 1);
      CHECK(generations[i].rank == static_cast<int>(i));
      CHECK(sums[i] == world);
      CHECK_FALSE(members[i]->fenced(1));
      for (const int peer : job.options(static_cast<int>(i)).data_peers) {
        CHECK(generations[i].data->linked(peer));
      }
    }
    CHECK(job.store->get(key(1, "outcome")) == "formed");
    for (const auto& g : generations) g.close();
  }
}

TEST_CASE("a rank has more connections by default the larger its share of the processors is") {
  struct Row {
    unsigned processors, local_ranks, beside_trainer, in_recovery;
  };
  for (const Row& row : std::initializer_list<Row>{{1, 1, 1, 2},
                                                   {2, 2, 1, 2},
                                                   {4, 1, 1, 4},
                                                   {5, 1, 5, 5},
                                                   {16, 8, 1, 2},
                                                   {16, 4, 1, 4},
                                                   {16, 2, 8, 8},
                                                   {64, 2, 8, 8},
                                                   {2, 4, 1, 2},
                                                   {8, 0, 8, 8}}) {
    INFO(row.processors << " processors, " << row.local_ranks << " ranks");
    const AvailableProcessors processors{.allowed = row.processors, .quota = {}, .cgroup = {}};
    CHECK(default_connections(processors, row.local_ranks) == row.beside_trainer);
    CHECK(default_recovery_connections(processors, row.local_ranks) == row.in_recovery);
  }
}

TEST_CASE("two ranks have as many connections for images as the one that wants fewer") {
  Job job(3);  // each rank exchanges images with both others
  constexpr std::array<unsigned, 3> kWanted{5, 2, 100}, kWantedInRounds{1, 2, 3};
  std::vector<std::unique_ptr<Membership>> members;
  for (int r = 0; r < 3; ++r) {
    auto options = job.options(r);
    options.connections = kWantedInRounds.at(static_cast<std::size_t>(r));
    options.recovery_connections = kWanted.at(static_cast<std::size_t>(r));
    members.push_back(std::make_unique<Membership>(std::move(options)));
  }
  const auto generations = form_all(members);
  constexpr std::array<std::array<unsigned, 3>, 3> kExpected{{{1, 2, 5}, {2, 1, 2}, {5, 2, 1}}};
  constexpr std::array<std::array<unsigned, 3>, 3> kExpectedInRounds{
      {{1, 1, 1}, {1, 1, 2}, {1, 2, 1}}};
  for (std::size_t r = 0; r < 3; ++r) {
    for (const auto peer : {(r + 1) % 3, (r + 2) % 3}) {
      CHECK(generations[r].data->connections(static_cast<int>(peer)) == kExpected[r][peer]);
      const auto& agreed = generations[r].connections.at(static_cast<int>(peer));
      CHECK(agreed.in_recovery == kExpected[r][peer]);
      CHECK(agreed.beside_trainer == kExpectedInRounds[r][peer]);
    }
  }
  // The trainer's group has connections of its own: an end of the images' leaves it alone.
  CHECK(generations[0].training->connections(1) == 1);
  for (const auto& g : generations) g.data->close();
  std::vector<std::int64_t> sums(3);
  run_ranks_without_error(3, [&](int r) {
    const auto i = static_cast<std::size_t>(r);
    std::vector<std::int64_t> one{1};
    collectives::all_reduce(*generations[i].training, std::span(one), collectives::ReduceOp::kSum,
                            soon());
    sums[i] = one[0];
  });
  CHECK(sums == std::vector<std::int64_t>{3, 3, 3});
  for (const auto& g : generations) g.close();
}

TEST_CASE("what a rank sends right after forming reaches its neighbour's handlers") {
  Job job(3);
  std::vector<std::unique_ptr<Membership>> members;
  for (int r = 0; r < 3; ++r) members.push_back(job.member(r));
  std::vector<Recorder> recorders(3);
  std::vector<Generation> generations(3);
  run_ranks_without_error(3, [&](int r) {
    const auto i = static_cast<std::size_t>(r);
    generations[i] = members[i]->form(0, soon());
    for (const int peer : generations[i].links->peers()) {
      generations[i].links->send(peer, bytes_of("hi"));
    }
    generations[i].links->set_handlers(recorders[i].handlers());
  });
  for (std::size_t i = 0; i < 3; ++i) {
    const auto count = generations[i].links->peers().size();
    REQUIRE(recorders[i].wait_for(count));
    for (const auto& line : recorders[i].seen()) CHECK_THAT(line, Contains(": hi"));
  }
  for (const auto& g : generations) g.links->set_handlers({});
}

TEST_CASE("survivors and a replacement move on together, and all know who died") {
  Job job(4);
  std::vector<std::unique_ptr<Membership>> members;
  for (int r = 0; r < 4; ++r) members.push_back(job.member(r));
  auto generations = form_all(members);
  job.fabric.kill(2);
  CHECK(members[0]->declare_death(1, 2, "end of file").rank == 2);
  // A later witness blames somebody else: the first cause stays.
  CHECK(members[3]->declare_death(1, 0, "closed").rank == 2);
  CHECK(members[1]->cause_of(1)->rank == 2);
  CHECK(members[1]->cause_of(1)->reason == "end of file");
  CHECK_FALSE(members[1]->cause_of(2).has_value());
  for (const auto& g : generations) g.close();
  const auto dead = std::move(members[2]);
  members[2] = job.member(2);
  generations = form_all(members);
  CHECK(members[2]->incarnation() == 2);
  for (const auto& g : generations) CHECK(g.number == 2);
  CHECK(members[1]->fenced(1));
  CHECK_FALSE(members[1]->fenced(2));
  // The one that was replaced wakes: it is told so, and the job is not disturbed.
  CHECK(dead->fenced(2));
  CHECK_THROWS_AS(dead->form(0, soon()), InvalidState);
  CHECK(job.store->get(key(2, "outcome")) == "formed");
  CHECK(job.store->list("job/gen/" + std::string(19, '0') + "3").empty());
}

TEST_CASE("a rank that joined and died leads to the next generation when its replacement comes") {
  Job job(3);
  // Rank 1 took its place in generation 1 and was never heard of again.
  job.store->set(claim_key(1), "3 ? 0");
  job.store->set(key(1, "place/1"), "1 0 0 0 0");
  job.store->set("job/incarnation/1/00000000000000000001", "gone");
  std::vector<std::unique_ptr<Membership>> members;
  for (int r = 0; r < 3; ++r) members.push_back(job.member(r));
  const auto generations = form_all(members);
  for (const auto& g : generations) CHECK(g.number == 2);
  CHECK_THAT(*job.store->get(key(1, "outcome")), Contains("abandoned"));
}

TEST_CASE("a death in the middle of forming abandons the generation for all, without a hang") {
  for (int victim = 0; victim < 4; ++victim) {
    INFO("victim " << victim);
    Job job(4);
    std::vector<std::unique_ptr<Membership>> members;
    for (int r = 0; r < 4; ++r) members.push_back(job.member(r));
    // Three come; the victim's partner holds the others up until it is dead.
    const int late = (victim + 1) % 4;
    std::vector<Generation> generations(4);
    std::vector<std::string> errors(4);
    std::vector<std::thread> ranks;
    const auto start = [&](int r, Membership* member, Deadline deadline) {
      ranks.emplace_back([&, r, member, deadline] {
        errors[static_cast<std::size_t>(r)] =
            error_of([&] { generations[static_cast<std::size_t>(r)] = member->form(0, deadline); });
      });
    };
    // The victim is a thread, which goes on trying after its death: not for long.
    for (int r = 0; r < 4; ++r) {
      if (r == late) continue;
      start(r, members[static_cast<std::size_t>(r)].get(),
            r == victim ? Deadline::after(1s) : soon());
    }
    (void)job.store->wait_for(key(1, "place/" + std::to_string(victim)), soon());
    job.fabric.kill(victim);
    const auto killed = static_cast<std::size_t>(ranks.size());
    const auto replacement = job.member(victim);
    start(late, members[static_cast<std::size_t>(late)].get(), soon());
    // The dead one's thread ends by itself; its element is written again by its replacement.
    ranks[static_cast<std::size_t>(victim < late ? victim : victim - 1)].join();
    CHECK_FALSE(errors[static_cast<std::size_t>(victim)].empty());
    members[static_cast<std::size_t>(victim)].reset();  // else its process would still answer
    start(victim, replacement.get(), soon());
    for (auto& t : ranks) {
      if (t.joinable()) t.join();
    }
    CHECK(killed == 3);
    for (std::size_t r = 0; r < 4; ++r) {
      INFO("rank " << r << ": " << errors[r]);
      CHECK(errors[r].empty());
      CHECK(generations[r].number == generations[0].number);
      CHECK(generations[r].number >= 2);
    }
  }
}

TEST_CASE("at the deadline the ranks that did not come are named") {
  Job job(4);
  const auto zero = job.member(0);
  const auto two = job.member(2);
  std::vector<std::string> errors(4);
  const auto deadline = Deadline::after(4s);  // both have come by then, on a busy machine, too
  run_ranks_without_error(3, [&](int r) {
    if (r == 1) return;
    errors[static_cast<std::size_t>(r)] =
        error_of([&] { (void)(r == 0 ? zero : two)->form(0, deadline); });
  });
  for (const std::size_t r : {0, 2}) {
    INFO(errors[r]);
    CHECK(errors[r].starts_with("timeout"));
    // Whoever leaves first may be said behind it.
    CHECK(errors[r].find("did not come: 1, 3") != std::string::npos);
  }
}

TEST_CASE("a rank of another world size is told both") {
  Job job(2);
  const auto zero = job.member(0);
  std::thread waiting(
      [&] { (void)error_of([&] { (void)zero->form(0, Deadline::after(200ms)); }); });
  (void)job.store->wait_for(key(1, "place/0"), soon());
  auto options = job.options(1);
  options.world_size = 3;
  options.data_peers = {0};
  Membership other(options);
  const std::string error = error_of([&] { (void)other.form(0, Deadline::after(20s)); });
  waiting.join();
  CHECK_THAT(error, Contains("2 ranks"));
  CHECK_THAT(error, Contains("one of 3"));
}

TEST_CASE("ranks that were told different things are told both") {
  Job job(2);
  auto options = job.options(0);
  options.agreement = "blocks of 4096 bytes";
  Membership zero(options);
  std::thread waiting([&] { (void)error_of([&] { (void)zero.form(0, Deadline::after(200ms)); }); });
  (void)job.store->wait_for(key(1, "place/0"), soon());
  options = job.options(1);
  options.agreement = "blocks of 8192 bytes";
  Membership one(options);
  const std::string error = error_of([&] { (void)one.form(0, Deadline::after(20s)); });
  waiting.join();
  CHECK_THAT(error, Contains("rank 1 was started with blocks of 8192 bytes"));
  CHECK_THAT(error, Contains("others with blocks of 4096 bytes"));
}

TEST_CASE("a hundred generations leave a handful of keys") {
  Job job(3);
  std::vector<std::unique_ptr<Membership>> members;
  for (int r = 0; r < 3; ++r) members.push_back(job.member(r));
  std::uint64_t last = 0;
  std::size_t keys = 0;
  for (int i = 0; i < 100; ++i) {
    const auto generations = form_all(members, last);
    CHECK(generations[0].number == last + 1);
    last = generations[0].number;
    for (const auto& g : generations) g.close();
    if (i == 10) keys = job.store->list("").size();
  }
  CHECK(job.store->list("").size() <= keys);
}

TEST_CASE("senseless membership options are refused") {
  Job job(2);
  const auto refused = [&](const std::function<void(MembershipOptions&)>& change) {
    auto options = job.options(0);
    change(options);
    CHECK_THROWS_AS(Membership(options), InvalidArgument);
  };
  refused([](MembershipOptions& o) { o.job.clear(); });
  refused([](MembershipOptions& o) { o.rank = 2; });
  refused([](MembershipOptions& o) { o.world_size = 0; });
  refused([](MembershipOptions& o) { o.store = nullptr; });
  refused([](MembershipOptions& o) { o.transport = nullptr; });
  refused([](MembershipOptions& o) { o.data_peers = {0}; });
  refused([](MembershipOptions& o) { o.data_peers = {1, 1}; });
}

TEST_CASE("a transfer that ends because its peer left a broken generation names who broke it") {
  Job job(3);
  std::vector<std::unique_ptr<Membership>> members;
  for (int r = 0; r < 3; ++r) members.push_back(job.member(r));
  auto generations = form_all(members);
  const auto lost_by = [&] {
    std::byte b{};
    try {
      const auto transfer = generations[1].training->receive(0, 5, std::span(&b, 1));
      transfer->wait(soon());
    } catch (const PeerLost& e) {
      return e.rank().value_or(-1);
    }
    return -2;
  };
  SECTION("rank 0 noted the death of rank 2 before it went") {
    members[0]->declare_death(1, 2, "end of file");
    job.fabric.kill(0);
    CHECK(lost_by() == 2);
    CHECK(lost_by() == 2);  // posted after it, too
  }
  SECTION("rank 0 is the one that died") {
    job.fabric.kill(0);
    CHECK(lost_by() == 0);
    // Noted before rank 1 can close anything: who takes rank 1 for the dead one finds this.
    CHECK(members[2]->declare_death(1, 1, "closed").rank == 0);
  }
  for (const auto& g : generations) g.close();
}

TEST_CASE("a generation that no job reaches is refused, and named") {
  const std::string last = std::to_string(~std::uint64_t{0});
  {
    Job job(2);
    const auto member = job.member(0);
    CHECK_THAT(error_of([&] { (void)member->form(~std::uint64_t{0}, soon()); }),
               Contains("generation " + last));
  }
  for (const std::string& stray :
       {"job/claim/" + last, std::string("job/claim/notes"),
        std::string("job/claim/00000000000000000000"), "job/claim/" + std::string(40, '9')}) {
    INFO(stray);
    Job job(2);
    const auto member = job.member(0);
    job.store->set(stray, "2");
    CHECK_THAT(error_of([&] { (void)member->form(0, soon()); }), Contains(stray));
  }
}

namespace {

/// Publishes an address that no peer can reach.
class Unreachable final : public Transport {
 public:
  std::shared_ptr<ControlLinks> connect_links(const ConnectRequest& request, Store& store,
                                              Deadline deadline, std::stop_token) override {
    ++attempts;
    store.set(request.store_prefix + "/links/" + std::to_string(request.rank), "nowhere", deadline);
    throw make_error<PeerLost>("cannot connect to rank 1: no route to host", 1);
  }
  std::shared_ptr<ProcessGroup> connect_group(const ConnectRequest&, Store&, Deadline,
                                              std::stop_token) override {
    throw InvalidState("without links there is no group");
  }
  std::atomic<int> attempts = 0;
};

}  // namespace

TEST_CASE("where a peer cannot be reached attempts get rarer, leave no address, and say why") {
  Job job(2);
  const auto transport = std::make_shared<Unreachable>();
  const auto errors = run_ranks(2, [&](int rank) {
    auto options = job.options(rank);
    options.transport = transport;
    Membership member(options);
    (void)member.form(0, Deadline::after(2s));
  });
  for (const auto& e : errors) {
    CHECK_THAT(e, Contains("timeout"));
    CHECK_THAT(e, Contains("no route to host"));
  }
  CHECK(transport->attempts > 4);
  CHECK(transport->attempts < 40);
  for (const auto& k : job.store->list("")) CHECK_THAT(k, !Contains("/net/"));
  CHECK(job.store->list("").size() < 100);
}

namespace {

/// Lists nothing from an attempt that failed until the deadline of form() is over.
class BusyStore final : public WrappedStore {
 public:
  BusyStore(std::shared_ptr<Store> inner, const std::atomic<int>& failed_attempts,
            Deadline deadline)
      : WrappedStore(std::move(inner)), failed_attempts_(failed_attempts), deadline_(deadline) {}
  std::vector<std::string> list(const std::string& prefix, Deadline deadline) override {
    if (failed_attempts_ > 0) std::this_thread::sleep_until(deadline_.time());
    return WrappedStore::list(prefix, deadline);
  }

 private:
  const std::atomic<int>& failed_attempts_;
  const Deadline deadline_;
};

}  // namespace

TEST_CASE("the ranks that did not come are named, too, if the deadline falls between attempts") {
  Job job(4);
  const auto deadline = Deadline::after(1s);
  const auto transport = std::make_shared<Unreachable>();
  auto options = job.options(0);
  options.transport = transport;
  options.store = std::make_shared<BusyStore>(job.store, transport->attempts, deadline);
  Membership member(options);
  const auto error = error_of([&] { (void)member.form(0, deadline); });
  CHECK(transport->attempts == 1);
  CHECK_THAT(error, Contains("did not come: 1, 2, 3"));
  CHECK_THAT(error, Contains("no route to host"));
}
