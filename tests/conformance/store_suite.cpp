#include "tests/conformance/store_suite.hpp"

#include <chrono>
#include <future>
#include <set>
#include <stop_token>
#include <thread>

#include <meshstage/core/comm/in_process/fabric.hpp>
#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/conformance/ranks.hpp"
#include "tests/support/catch.hpp"

namespace meshstage::testing {

using namespace std::chrono_literals;
using Catch::Matchers::Contains;
using Catch::Matchers::StartsWith;
using Keys = std::vector<std::string>;

void store_conforms(const std::function<std::shared_ptr<Store>()>& open) {
  const auto store = open();
  const auto other = open();

  SECTION("what one sets another gets, whatever the bytes") {
    const std::string odd("\0\n\xff value", 9);
    CHECK_FALSE(store->get("a").has_value());
    store->set("a", odd);
    CHECK(other->get("a") == odd);
    store->set("a", "");
    CHECK(other->get("a") == "");
    store->remove("a");
    store->remove("a");
    CHECK_FALSE(other->get("a").has_value());
  }

  SECTION("keys of any text are told apart and listed by prefix, sorted") {
    const Keys keys{".hidden", "job/1/a", "job/1/b", "job/10", "job 1%2f+\n", "job+1"};
    for (const auto& k : keys) store->set(k, "value of " + k);
    for (const auto& k : keys) CHECK(other->get(k) == "value of " + k);
    CHECK(other->list("job/1/") == Keys{"job/1/a", "job/1/b"});
    CHECK(other->list("").size() == keys.size());
    CHECK(other->list("nothing").empty());
  }

  SECTION("an empty key and one that is too long are refused") {
    CHECK_THROWS_AS(store->set("", "x"), InvalidArgument);
    CHECK_THROWS_AS(store->set(std::string(2000, 'k'), "x"), InvalidArgument);
  }

  SECTION("it is reachable") {
    CHECK_NOTHROW(store->wait_reachable(Deadline::after(30s)));
    store->set("a", "1");
    CHECK(other->get("a") == "1");
  }

  SECTION("of many that create one key, one wins and all learn who") {
    constexpr int kThreads = 8;
    constexpr int kRounds = 50;
    std::vector<std::vector<std::string>> seen(kThreads);
    run_ranks_without_error(kThreads, [&](int rank) {
      const auto mine = open();
      for (int i = 0; i < kRounds; ++i) {
        seen[static_cast<std::size_t>(rank)].push_back(
            mine->compare_and_create("race/" + std::to_string(i), std::to_string(rank)));
      }
    });
    for (std::size_t i = 0; i < kRounds; ++i) {
      std::set<std::string> winners{*store->get("race/" + std::to_string(i))};
      for (const auto& s : seen) winners.insert(s[i]);
      CHECK(winners.size() == 1);
    }
  }

  SECTION("waiting ends with the first of several keys, at the deadline, or at a stop") {
    std::string got;
    std::thread waiting([&] {
      const Keys keys{"never", "later"};
      got = error_of(
          [&] { throw std::runtime_error(other->wait_for_any(keys, Deadline::after(30s))); });
    });
    store->set("later", "here");
    waiting.join();
    CHECK(got == "here");

    CHECK_THROWS_AS(store->wait_for("never", Deadline::after(3ms)), Timeout);
    CHECK(store->wait_for("later", Deadline::after(0ms)) == "here");
    std::stop_source stop;
    std::string error;
    std::thread stopped([&] {
      error =
          error_of([&] { (void)other->wait_for("never", Deadline::never(), stop.get_token()); });
    });
    stop.request_stop();
    stopped.join();
    CHECK(error.starts_with("cancelled"));
  }
}

void ranks_form_over(const std::function<std::shared_ptr<Store>()>& open) {
  constexpr int kWorld = 5;
  constexpr int kVictim = 3;
  InProcessFabric fabric;
  const auto member = [&](int rank) {
    MembershipOptions o;
    o.job = "job";
    o.rank = rank;
    o.world_size = kWorld;
    o.store = open();
    o.transport = fabric.attach(rank);
    o.data_peers = {(rank + 1) % kWorld, (rank + kWorld - 1) % kWorld};
    return std::make_unique<Membership>(o);
  };
  std::vector<std::unique_ptr<Membership>> members;
  std::vector<Generation> generations(kWorld);
  for (int r = 0; r < kWorld; ++r) members.push_back(member(r));
  const auto form = [&](std::uint64_t seen) {
    run_ranks_without_error(kWorld, [&](int rank) {
      const auto r = static_cast<std::size_t>(rank);
      generations[r] = members[r]->form(seen, Deadline::after(30s));
    });
    for (const auto& g : generations) CHECK(g.number == generations[0].number);
  };
  form(0);
  const auto first = generations[0].number;
  fabric.kill(kVictim);
  CHECK(members[0]->declare_death(first, kVictim, "died").rank == kVictim);
  CHECK(members[1]->declare_death(first, 0, "left").rank == kVictim);
  for (const auto& g : generations) g.close();
  members[kVictim] = member(kVictim);
  form(first);
  CHECK(members[kVictim]->incarnation() == 2);
  CHECK(generations[0].number > first);
  const auto cause = members[4]->cause_of(first);
  REQUIRE(cause.has_value());
  CHECK(cause->rank == kVictim);
  CHECK(members[2]->fenced(first));
  for (const auto& g : generations) g.close();
}

void server_may_start_later(Store& store, Store& after, const std::function<void()>& start) {
  std::promise<std::string> turned_away;
  auto first = turned_away.get_future();
  std::string got;
  std::thread early([&] {
    int failures = 0;
    got = error_of([&] {
      store.wait_reachable(Deadline::after(30s), {}, [&](const std::string& why) {
        if (++failures == 1) turned_away.set_value(why);
      });
      after.set("early", "here");
      throw std::runtime_error(*after.get("early"));
    });
    if (failures == 0) turned_away.set_value("not once, but " + got);
  });
  const std::string why = first.get();
  start();
  early.join();
  CHECK_THAT(why, Contains("no store answers at "));
  CHECK_THAT(why, Contains("(1 attempt in "));
  CHECK(got == "here");
}

void silence_is_told(Store& store, const std::string& hint) {
  int failures = 0;
  const auto count = [&](const std::string&) { ++failures; };
  const auto began = Deadline::Clock::now();
  const std::string late =
      error_of([&] { store.wait_reachable(Deadline::after(100ms), {}, count); });
  CHECK(Deadline::Clock::now() - began >= 100ms);
  CHECK_THAT(late, StartsWith("timeout: no store answers at "));
  CHECK_THAT(late, Contains("Connection refused"));
  CHECK_THAT(late, Contains(hint));
  CHECK(failures <= 4);  // at 0, 10, 30 and 70 ms
  CHECK_THAT(late, Contains("(" + std::to_string(failures + 1) + " attempt"));
  CHECK_THROWS_AS(store.wait_reachable(Deadline::after(0ms)), Timeout);

  std::stop_source stop;
  const std::string stopped = error_of([&] {
    store.wait_reachable(Deadline::never(), stop.get_token(),
                         [&](const std::string&) { stop.request_stop(); });
  });
  CHECK(stopped.starts_with("cancelled"));
  // Who waits for an entry, too, is told that the store is to blame.
  CHECK_THAT(error_of([&] { (void)store.wait_for("k", Deadline::after(10ms)); }),
             StartsWith("timeout") && Contains("no store answers at ") && Contains(hint));
}

}  // namespace meshstage::testing
