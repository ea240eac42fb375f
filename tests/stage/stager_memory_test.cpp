// The stager's host memory: what it holds, what it reuses, and what it refuses.
#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/tree/compare.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/memory_kinds.hpp"

using namespace meshstage;

namespace {

const Tensor& tensor(const Value& v, const char* key) { return v.at(key).as<Tensor>(); }
const std::byte* place(const Value& v, const char* key) { return tensor(v, key).storage().data(); }
Tensor filled(std::int64_t bytes, std::uint8_t value) {
  return Tensor::full<std::uint8_t>({bytes}, value);
}

}  // namespace

TEST_CASE("dead and resized storages: a source is not kept, and its memory is used again") {
  CountingMemory counting(host_memory());
  StateDictStager stager({.memory = &counting});
  Dict state{{"w", filled(100000, 1)}, {"v", filled(100000, 2)}};
  const WeakStorage source(tensor(state, "w").storage());
  const auto* const before = place(stager.stage(state), "w");
  state.set("w", filled(100000, 3));
  CHECK(source.expired());
  CHECK_FALSE(source.lock().valid());
  {
    const auto staged = stager.stage(state);
    CHECK_FALSE(compare(state, staged));
    CHECK(place(staged, "w") == before);
  }
  // Under another name it takes the place that became free.
  state.erase("w");
  state.set("x", filled(99999, 4));
  const auto renamed = stager.stage(state);
  CHECK_FALSE(compare(state, renamed));
  CHECK(place(renamed, "x") == before);
  CHECK(stager.cached_storages() == 2);
  CHECK(stager.cached_bytes() == 199999);
  CHECK(counting.counts().allocations == 1);
}

TEST_CASE("dead and resized storages: a new storage at an old address is a new storage") {
  alignas(64) static std::array<std::uint8_t, 4096> memory{};
  StateDictStager stager;
  const auto at_the_address = [](std::int64_t bytes, std::uint8_t value) {
    memory.fill(value);
    return Tensor::from_blob(memory.data(), {bytes}, DType::kU8, {});
  };
  Dict state{{"w", at_the_address(1000, 1)}, {"v", filled(10, 1)}};
  CHECK_FALSE(compare(state, stager.stage(state)));
  // Two handles of the dead storage's address and size: sharing now, where there was none.
  const auto again = at_the_address(1000, 2);
  state = Dict{{"w", again}, {"v", again.narrow(0, 5, 10)}};
  const auto staged = stager.stage(state);
  CHECK_FALSE(compare(state, staged));
  CHECK(tensor(staged, "w").storage() == tensor(staged, "v").storage());
  CHECK(stager.cached_storages() == 1);
  for (int round = 0; round < 50; ++round) {
    const Dict churn{{"w", Tensor::full<std::int32_t>({1000 + round % 3}, round)}};
    CHECK_FALSE(compare(churn, stager.stage(churn)));
  }
}

TEST_CASE("dead and resized storages: a changed size is a new storage") {
  StateDictStager stager;
  Dict state{{"w", filled(1000, 1)}, {"last", filled(1000, 2)}};
  const auto first = stager.stage(state);
  for (const std::int64_t size : {1001, 999, 0, 70000}) {
    state.set("w", filled(size, 3));
    const auto staged = stager.stage(state);
    CHECK_FALSE(compare(state, staged, {.storage_bytes = true}));
    CHECK(stager.cached_bytes() == static_cast<std::uint64_t>(1000 + size));
    CHECK(stager.cached_storages() == 2);
  }
  // Larger below the same view.
  state.set("w", filled(80000, 4).narrow(0, 0, 70000));
  CHECK_FALSE(compare(state, stager.stage(state), {.storage_bytes = true}));
  CHECK(stager.cached_bytes() == 81000);
}

TEST_CASE("structure changes re-plan, and what stayed keeps its place") {
  StateDictStager stager;
  Dict state{{"a", filled(100000, 1)}, {"b", filled(6400, 2)}, {"c", filled(100000, 3)}};
  const auto* const a = place(stager.stage(state), "a");
  const auto* const c = place(stager.stage(state), "c");
  CHECK(stager.plans() == 1);
  const auto check = [&](std::uint64_t plans) {
    const auto staged = stager.stage(state);
    CHECK_FALSE(compare(state, staged));
    CHECK(stager.plans() == plans);
    CHECK(place(staged, "a") == a);
    CHECK(place(staged, "c") == c);
  };
  SECTION("removed, and another added in its place") {
    state.erase("b");
    check(2);
    state.set("new", filled(6000, 4));
    check(3);
    CHECK(stager.cached_storages() == 3);
  }
  SECTION("re-shaped") {
    state.set("a", tensor(state, "a").view({1000, 100}));
    check(2);
    state.set("a", tensor(state, "a").transpose(0, 1));
    check(3);
  }
  SECTION("re-typed") {
    const auto& t = tensor(state, "a");
    state.set("a", Tensor::on_storage(t.storage(), DType::kF32, {25000}));
    check(2);
  }
  SECTION("a number that became a tensor, a list that became a tuple") {
    state.set("n", 1);
    check(2);
    state.set("n", Tensor::scalar(1));
    check(3);
    state.set("l", List{1});
    check(4);
    state.set("l", Tuple{1});
    check(5);
  }
}

TEST_CASE("structure changes: what was staged before lives as long as its Value") {
  CountingMemory counting(host_memory());
  {
    StateDictStager stager({.memory = &counting});
    Dict state{{"a", Tensor::full<float>({100}, 1)}};
    const auto first = stager.stage(state);
    state.set("b", Tensor::full<float>({100000}, 2));
    const auto second = stager.stage(state);
    CHECK(stager.plans() == 2);
    CHECK(stager.cached_storages() == 2);
    CHECK(tensor(first, "a").data<float>()[99] == 1);
    CHECK_FALSE(compare(state, second));
    state.erase("b");
    const auto third = stager.stage(state);
    CHECK(stager.cached_storages() == 1);
    CHECK_FALSE(compare(state, third));
    CHECK(counting.counts().blocks == 2);
    stager.clear();
    CHECK_FALSE(compare(state, third));
    CHECK_FALSE(compare(state, stager.stage(state)));
  }
  CHECK(counting.counts().bytes == 0);
}

TEST_CASE("pinning refused: without a device there is one warning, and nothing is pinned") {
  std::vector<std::string> warnings;
  StagerOptions options;
  options.pin_memory = true;
  options.warn = [&](const std::string& text) { warnings.push_back(text); };
  StateDictStager stager(options);
  Dict state{{"w", filled(100000, 1)}};
  for (int round = 0; round < 3; ++round) {
    const auto staged = stager.stage(state);
    CHECK_FALSE(compare(state, staged));
    CHECK_FALSE(tensor(staged, "w").is_pinned());
    CHECK_FALSE(tensor(staged, "w").storage().is_pinned());
    state.set("w" + std::to_string(round), filled(100000, 2));
  }
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], contains_text("pin_memory is ignored"));
}

TEST_CASE("pinning refused: by the device there is one warning, and staging goes on") {
  test::FakePinner pinner;
  const int locked = GENERATE(0, 1);
  pinner.refuse_from = locked;
  std::vector<std::string> warnings;
  StagerOptions options;
  options.pin_memory = true;
  options.pinner = &pinner;
  options.warn = [&](const std::string& text) { warnings.push_back(text); };
  StateDictStager stager(options);
  const Dict state{{"a", filled(100000, 1)}, {"small", filled(10, 2)}, {"b", filled(100000, 3)}};
  for (int round = 0; round < 3; ++round) {
    const auto staged = stager.stage(state);
    CHECK_FALSE(compare(state, staged));
    CHECK(tensor(staged, "a").is_pinned() == (round < locked));
    CHECK(tensor(staged, "b").is_pinned() == (round < locked));
    CHECK(pinner.ranges() == (round < locked ? 1 : 0));
    stager.clear();
  }
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], contains_text("the device locks no more memory"));
}

TEST_CASE("pin_memory_min_bytes leaves small storages unpinned") {
  test::FakePinner pinner;
  StagerOptions options;
  options.pin_memory = true;
  options.pin_memory_min_bytes = 1000;
  options.pinner = &pinner;
  {
    StateDictStager stager(options);
    Dict state{{"a", filled(999, 1)},
               {"b", filled(1000, 2)},
               {"c", filled(5000, 3)},
               {"d", filled(999, 4)},
               {"e", filled(1000, 5)}};
    const auto check = [&](const Value& staged) {
      CHECK_FALSE(compare(state, staged));
      for (const auto& [name, value] : state) {
        INFO(name.string());
        const auto& storage = staged.at(name).as<Tensor>().storage();
        CHECK(storage.is_pinned() == (storage.nbytes() >= 1000));
        CHECK(storage.is_pinned() == pinner.locks(storage.bytes()));
      }
    };
    check(stager.stage(state));
    CHECK(pinner.ranges() == 1);  // in one go
    // Changes of structure keep it so.
    state.set("f", filled(2000, 6));
    check(stager.stage(state));
    state.set("d", filled(1001, 7));
    check(stager.stage(state));
    state.set("b", filled(10, 8));
    state.erase("a");
    check(stager.stage(state));
  }
  CHECK(pinner.ranges() == 0);
  CHECK(pinner.wrong_unpins == 0);
}

TEST_CASE("budget: a cap on host memory is refused before anything is allocated") {
  CountingMemory counting(host_memory());
  StagerOptions options;
  options.memory = &counting;
  options.max_bytes = 1 << 20;
  StateDictStager stager(options);
  const Dict small{{"a", Tensor::full<float>({100}, 1)}};
  const auto staged = stager.stage(small);
  const auto before = counting.counts();
  const Dict large{{"a", Tensor::zeros({1 << 20}, DType::kF32)}};
  CHECK_THROWS_AS(stager.stage(large), OutOfMemory);
  CHECK_THROWS_AS(stager.stage_async(large), OutOfMemory);
  CHECK_THROWS_WITH(stager.stage(large), contains_text("of the cap of 1048576"));
  CHECK(counting.counts().allocations == before.allocations);
  CHECK(counting.counts().bytes <= 1 << 20);
  CHECK_FALSE(compare(small, staged));
  CHECK_FALSE(compare(small, stager.stage(small)));
  CHECK(stager.plans() == 1);
}

TEST_CASE("budget: a cap on shared memory is refused, and so are options that contradict") {
  StagerOptions options;
  options.share_memory = true;
  options.max_bytes = 1 << 20;
  StateDictStager stager(options);
  CHECK_THROWS_AS(stager.stage(Tensor::zeros({1 << 20}, DType::kF32)), OutOfMemory);
  CHECK_FALSE(compare(Tensor::scalar(1), stager.stage(Tensor::scalar(1))));
  options.memory = &host_memory();
  CHECK_THROWS_AS(StateDictStager(options), InvalidArgument);
}
