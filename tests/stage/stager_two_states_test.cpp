// One stager, several state dicts: host memory belongs to the storage that it was made for.
#include <algorithm>
#include <map>
#include <random>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/tree/compare.hpp>

#include "tests/stage/gate.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/memory_kinds.hpp"

using namespace meshstage;

namespace {

const Tensor& tensor(const Value& v, const Key& key) { return v.at(key).as<Tensor>(); }

Tensor filled(std::int64_t elements, std::int32_t value) {
  return Tensor::full<std::int32_t>({elements}, value);
}
void fill(const Tensor& t, std::int32_t value) {
  for (auto& element : t.span<std::int32_t>()) element = value;
}
std::vector<std::int32_t> elements(const Storage& storage) {
  const auto* const first = reinterpret_cast<const std::int32_t*>(storage.data());
  return {first, first + storage.nbytes() / 4};
}

Value stage(StateDictStager& stager, const Value& state, bool asynchronous) {
  return asynchronous ? stager.stage_async(state).get() : stager.stage(state);
}

}  // namespace

MEMORY_KINDS_TEST(other_keys, "two states: the first result does not show the second's bytes") {
  StateDictStager stager(kind.options());
  const Dict model{{"w", filled(5000, 1)}, {"b", filled(3, 2)}};
  const Dict optimizer{{"m", filled(5000, 3)}, {"v", filled(3, 4)}};
  const auto first = stager.stage(model);
  const auto second = stager.stage(optimizer);
  CHECK_FALSE(compare(model, first));
  CHECK_FALSE(compare(optimizer, second));
  CHECK(stager.cached_storages() == 4);
  CHECK(stager.cached_bytes() == 2 * (20000 + 12));
  // Staged again, each is refreshed in its own memory.
  for (int round = 5; round < 9; ++round) {
    fill(tensor(model, "w"), round);
    fill(tensor(optimizer, "v"), -round);
    CHECK_FALSE(compare(model, stager.stage(model)));
    CHECK_FALSE(compare(optimizer, stager.stage(optimizer)));
    CHECK_FALSE(compare(model, first));
    CHECK_FALSE(compare(optimizer, second));
    CHECK(stager.plans() == 2);
  }
}

MEMORY_KINDS_TEST(same_keys, "two states: the same keys over other storages are apart") {
  StateDictStager stager(kind.options());
  const auto state = [](std::int32_t value) {
    return Dict{{"w", filled(5000, value)}, {"view", filled(700, value).narrow(0, 3, 9)}};
  };
  const auto a = state(1), b = state(2), c = state(3);
  auto first = stager.stage_async(a);
  auto second = stager.stage_async(b);
  const auto third = stager.stage(c);
  CHECK_FALSE(compare(a, first.get()));
  CHECK_FALSE(compare(b, second.get()));
  CHECK_FALSE(compare(c, third));
  CHECK(stager.plans() == 1);
}

TEST_CASE("two states: a storage in both is one, and refreshed with either") {
  StateDictStager stager;
  const auto common = filled(5000, 1);
  const Dict a{{"common", common}, {"own", filled(100, 2)}};
  const Dict b{{"own", filled(100, 3)}, {"list", List{common.narrow(0, 10, 20)}}};
  const auto first = stager.stage(a);
  fill(common, 4);
  const auto second = stager.stage(b);
  CHECK_FALSE(compare(b, second));
  CHECK(tensor(first, "common").storage() == second.at("list").at(0).as<Tensor>().storage());
  CHECK_FALSE(compare(a, first));
  CHECK(stager.cached_storages() == 3);
}

TEST_CASE("two states: what waits to be copied is not overwritten by the next staging's storages") {
  test::Gate gate;
  StateDictStager stager({.pace = &gate});
  Dict state{{"w", filled(1000, 1)}};
  auto first = stager.stage_async(state);
  gate.wait_for_a_piece();
  state.set("w", filled(1000, 2));  // the first storage lives in the staging alone
  auto second = stager.stage_async(state);
  state.set("w", filled(1000, 3));
  auto third = stager.stage_async(state);
  gate.open();
  const auto results = std::array{third.get(), second.get(), first.get()};
  for (std::int32_t i = 0; i < 3; ++i) {
    const auto& w = tensor(results.at(static_cast<std::size_t>(i)), "w");
    CHECK(w.to_vector<std::int32_t>() == std::vector<std::int32_t>(1000, 3 - i));
  }
}

TEST_CASE("two states: the memory of a dead storage is used again when no Value has it") {
  CountingMemory counting(host_memory());
  StateDictStager stager({.memory = &counting});
  Dict state{{"w", filled(50000, 1)}, {"other", filled(50000, 7)}};
  auto kept = stager.stage(state);
  const void* const memory = tensor(kept, "w").storage().data();
  state.set("w", filled(50000, 2));
  auto next = stager.stage(state);
  CHECK(tensor(next, "w").storage().data() != memory);
  CHECK(elements(tensor(kept, "w").storage()) == std::vector<std::int32_t>(50000, 1));
  kept = {};
  state.set("w", filled(50000, 3));
  const auto last = stager.stage(state);
  CHECK(tensor(last, "w").storage().data() == memory);
  CHECK(elements(tensor(next, "w").storage()) == std::vector<std::int32_t>(50000, 2));
  CHECK(counting.counts().allocations == 2);
}

TEST_CASE(
    "two states: memory follows what lives, and two images suffice for new tensors each step") {
  CountingMemory counting(host_memory());
  StateDictStager stager({.memory = &counting});
  constexpr std::size_t kState = 2 * 400'000;
  Value last;
  for (std::int32_t step = 0; step < 20; ++step) {
    const Dict state{{"w", filled(100'000, step)}, {"v", filled(100'000, -step)}};
    last = stager.stage(state);  // the one before is there meanwhile
    CHECK_FALSE(compare(state, last));
    CHECK(counting.counts().bytes <= 2 * kState + 4 * 4096);
  }
  CHECK(counting.counts().allocations <= 2);
  // What nobody has any more costs nothing from the next staging on.
  const Dict small{{"n", filled(10, 1)}};
  last = stager.stage(small);
  last = stager.stage(small);
  CHECK(stager.cached_storages() == 1);
  CHECK(counting.counts().bytes <= 4096);
}

TEST_CASE("two states: holes do not pile up where storages come and go") {
  CountingMemory counting(host_memory());
  StateDictStager stager({.memory = &counting});
  std::mt19937 random(7);
  Dict state;
  for (int i = 0; i < 20; ++i) state.set("t" + std::to_string(i), filled(10000, i));
  for (int step = 0; step < 300; ++step) {
    const auto elements = static_cast<std::int64_t>(1 + random() % 20000);
    state.set("t" + std::to_string(random() % 20), filled(elements, step));
    CHECK_FALSE(compare(state, stager.stage(state)));
    // A tenth of waste, or 64 KiB; a page for each block.
    CHECK(counting.counts().bytes <= stager.cached_bytes() * 10 / 9 + (64 << 10) + 10 * 4096);
    CHECK(counting.counts().blocks <= 10);
  }
}

TEST_CASE("two states: beyond the cap, memory of storages that are not staged is given up") {
  CountingMemory counting(host_memory());
  StateDictStager stager({.memory = &counting, .max_bytes = 100'000});
  const Dict a{{"w", filled(15000, 1)}}, b{{"w", filled(16000, 2)}};
  CHECK_FALSE(compare(a, stager.stage(a)));
  CHECK(stager.cached_bytes() == 60'000);
  CHECK_FALSE(compare(b, stager.stage(b)));  // both live, and do not fit together
  CHECK(stager.cached_bytes() == 64'000);
  const auto held = stager.stage(a);
  CHECK_FALSE(compare(a, held));
  // What a Value has is not given up.
  CHECK_THROWS_AS(stager.stage(b), OutOfMemory);
  CHECK_FALSE(compare(a, held));
  fill(tensor(a, "w"), 3);
  CHECK_THROWS_AS(stager.stage_async(b), OutOfMemory);
  CHECK(elements(tensor(held, "w").storage()) == std::vector<std::int32_t>(15000, 1));
}

TEST_CASE("two states: external memory that comes to overlap otherwise is another's") {
  alignas(64) std::array<std::int32_t, 100> memory{};
  StateDictStager stager;
  const auto at = [&](std::size_t begin, std::int64_t count) {
    return Tensor::from_blob(memory.data() + begin, {count}, DType::kI32, {});
  };
  // What two spans of external memory cover is new at each call; its address must not be trusted.
  std::vector<Value> results;
  std::vector<std::vector<std::int32_t>> expected;
  for (std::int32_t round = 0; round < 40; ++round) {
    memory.fill(round);
    const auto begin = static_cast<std::size_t>(round) % 50;
    const Dict state{{"a", at(begin, 20)}, {"b", at(begin + 10, 20)}};
    results.push_back(stager.stage(state));
    CHECK_FALSE(compare(state, results.back()));
  }
  for (std::int32_t round = 0; round < 40; ++round) {
    CHECK(tensor(results[static_cast<std::size_t>(round)], "b").to_vector<std::int32_t>() ==
          std::vector<std::int32_t>(20, round));
  }
}

TEST_CASE("two states: a state and what it was staged to, in one state") {
  StateDictStager stager;
  const auto source = filled(5000, 1);
  const auto staged = tensor(stager.stage(Dict{{"w", source}}), "w");
  fill(source, 2);
  // Read and written in one call: the copy keeps what it showed.
  const Dict both{{"staged", staged}, {"source", source}};
  const auto result = stager.stage(both);
  CHECK_FALSE(compare(both, result));
  CHECK(elements(staged.storage()) == std::vector<std::int32_t>(5000, 1));
  fill(source, 3);
  CHECK_FALSE(compare(both, stager.stage(both)));
  CHECK(elements(tensor(result, "source").storage()) == std::vector<std::int32_t>(5000, 3));
}

namespace {

// Compares a stager with a model of it: after each staging, what an earlier result shows is what it
// showed before, or what its own source holds now.
class Model {
 public:
  Model(StagerOptions options, unsigned seed, bool capped)
      : stager_(std::move(options)), random_(seed), capped_(capped) {}

  void step(int number) {
    change_sources(number);
    const auto state = some_state();
    const bool asynchronous = pick(2) == 0;
    std::map<const void*, std::vector<std::int32_t>> read;  // by source
    for (const auto& [name, value] : state) {
      const auto& storage = value.as<Tensor>().storage();
      read.emplace(storage.identity(), elements(storage));
    }
    Value result;
    try {
      result = stage(stager_, state, asynchronous);
    } catch (const OutOfMemory&) {
      CHECK(capped_);
      check_results({});
      if (!results_.empty()) results_.erase(results_.begin());
      return;
    }
    check_results(read);
    Result kept{result, {}};
    for (const auto& [name, value] : state) {
      const auto& from = value.as<Tensor>().storage();
      const auto& to = tensor(result, name).storage();
      CHECK(elements(to) == read.at(from.identity()));
      kept.shown.insert_or_assign(to.identity(), Shown{to, WeakStorage(from), elements(to)});
    }
    results_.push_back(std::move(kept));
    while (results_.size() > 6 || (!results_.empty() && pick(3) == 0))
      results_.erase(results_.begin() + pick(static_cast<int>(results_.size())));
  }

 private:
  struct Shown {
    Storage storage;
    WeakStorage source;
    std::vector<std::int32_t> elements;
  };
  struct Result {
    Value value;
    std::map<const void*, Shown> shown;  // by staged storage
  };

  int pick(int below) { return static_cast<int>(random_() % static_cast<unsigned>(below)); }

  void change_sources(int number) {
    for (int i = pick(3); i >= 0; --i) {
      const auto name = "s" + std::to_string(pick(8));
      switch (pick(4)) {
        case 0:  // a new storage of the same size, or of another
          sources_[name] = filled(1 + pick(2) * 999 + pick(3) * 5000, 1000 * number + i);
          break;
        case 1:
          sources_.erase(name);
          break;
        default:
          if (sources_.contains(name)) fill(sources_.at(name), 1000 * number + i);
      }
    }
  }

  Dict some_state() {
    Dict state;
    for (const auto& [name, t] : sources_) {
      if (pick(3) != 0) state.set(name, pick(4) == 0 ? t.narrow(0, 0, 1) : t);
    }
    if (!results_.empty() && pick(4) == 0) {  // of what was staged before
      const auto& before =
          results_[static_cast<std::size_t>(pick(static_cast<int>(results_.size())))];
      for (const auto& [name, value] : before.value.as<Dict>()) {
        if (pick(2) == 0) state.set("again " + name.string(), value);
      }
    }
    if (pick(10) == 0) state.set("empty", filled(0, 0));
    return state;
  }

  void check_results(const std::map<const void*, std::vector<std::int32_t>>& read) {
    // A staged storage may be shown by several results: all expect the same of it.
    for (auto& result : results_) {
      for (auto& [identity, shown] : result.shown) {
        auto now = elements(shown.storage);
        if (now != shown.elements) {
          const auto it = read.find(shown.source.identity());
          REQUIRE(it != read.end());
          REQUIRE(now == it->second);
        }
        shown.elements = std::move(now);
      }
    }
  }

  StateDictStager stager_;
  std::mt19937 random_;
  bool capped_;
  std::map<std::string, Tensor> sources_;
  std::vector<Result> results_;
};

}  // namespace

MEMORY_KINDS_TEST(random_states, "two states: random ones, against a model") {
  for (unsigned seed = 0; seed < 30; ++seed) {
    INFO("seed " << seed);
    auto options = kind.options();
    const bool capped = seed % 3 == 0;
    if (capped) options.max_bytes = 200'000;
    if (seed % 3 == 1) options.pin_memory_min_bytes = 1000;
    Model model(std::move(options), seed, capped);
    for (int step = 1; step <= 60; ++step) model.step(step);
  }
}
