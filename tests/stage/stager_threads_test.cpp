// Stagers and threads. Results are gathered, and looked at on the main thread.
#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/tree/compare.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>

#include "tests/support/catch.hpp"
#include "tests/support/forked.hpp"
#include "tests/support/memory_kinds.hpp"
#include "tests/support/sanitized.hpp"

using namespace meshstage;

namespace {

Dict state_of(std::int32_t value) {
  return {{"w", Tensor::full<std::int32_t>({5000}, value)},
          {"l", List{Tensor::full<std::int32_t>({70}, value)}},
          {"n", value}};
}

}  // namespace

TEST_CASE("threads: stagers on several threads do not disturb each other") {
  constexpr int kThreads = 4;
  std::vector<int> wrong(kThreads);
  std::vector<std::thread> threads;
  const auto common = Tensor::arange<float>(2000);  // everybody stages it too
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      StateDictStager stager(StagerOptions{.share_memory = i % 2 == 0});
      for (int round = 0; round < 100; ++round) {
        auto state = state_of(100 * i + round);
        state.set("common", common);
        const auto staged = round % 2 == 0 ? stager.stage(state) : stager.stage_async(state).get();
        wrong[static_cast<std::size_t>(i)] += compare(state, staged) ? 1 : 0;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(kThreads));
}

TEST_CASE("threads: calls of one stager from two threads take turns") {
  StateDictStager stager;
  constexpr int kRounds = 300;
  // Each stages states of its own, new ones and one that stays; results are its own, too.
  std::vector<int> wrong(2);
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&, i] {
      auto& mine = wrong[static_cast<std::size_t>(i)];
      const auto staying = state_of(i);
      const auto first = stager.stage(staying);
      for (int round = 0; round < kRounds; ++round) {
        const auto state = state_of(2 * round + i);
        const auto staged = round % 2 == i ? stager.stage(state) : stager.stage_async(state).get();
        const auto again = stager.stage(staying);
        mine +=
            compare(state, staged) || compare(staying, again) || compare(staying, first) ? 1 : 0;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(2));
  CHECK(stager.plans() == 1);
}

TEST_CASE("the child of a fork ends, whatever its parent's stager is doing") {
  auto stager = std::make_unique<StateDictStager>();
  auto staged = stager->stage_async(state_of(7));
  REQUIRE(test::ends_in_forked_child([&] {
    staged = {};
    stager.reset();
  }));
  const Value result = staged.get(Deadline::after(std::chrono::seconds(20)));
  REQUIRE(result.at("n").as<std::int64_t>() == 7);
}

TEST_CASE("a child that ends by exit() destroys its copy of a global stager in order") {
  if (test::kSanitized) return;  // exit() would look for what the child's copies leak
  static std::unique_ptr<StateDictStager> global;
  global = std::make_unique<StateDictStager>();
  for (std::int32_t value = 0; value < 5; ++value) {
    const auto state = state_of(value);
    std::fflush(nullptr);                      // else the child writes it, too
    auto staged = global->stage_async(state);  // its thread may have any lock at the fork
    CHECK(test::ends_in_forked_child([] { std::exit(0); }));
    // The parent's goes on.
    CHECK_FALSE(compare(state, staged.get(Deadline::after(std::chrono::seconds(20)))));
    CHECK_FALSE(compare(state, global->stage(state)));
  }
  global.reset();
}
