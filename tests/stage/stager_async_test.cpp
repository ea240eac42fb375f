// Staging on the stager's own thread: when the source may change, who keeps it, how it ends.
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/tree/compare.hpp>

#include "tests/stage/gate.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/memory_kinds.hpp"

using namespace meshstage;

namespace {

const Tensor& tensor(const Value& v, const Key& key) { return v.at(key).as<Tensor>(); }

void fill(const Tensor& t, std::int32_t value) {
  for (auto& element : t.span<std::int32_t>()) element = value;
}

bool holds_only(const Tensor& t, std::int32_t value) {
  const auto elements = t.span<const std::int32_t>();
  return std::all_of(elements.begin(), elements.end(), [&](auto e) { return e == value; });
}

}  // namespace

MEMORY_KINDS_TEST(asynchronous, "asynchronous, as synchronous") {
  const auto t = Tensor::arange<std::int32_t>(5000);
  const Dict state{{"t", t}, {"view", t.narrow(0, 7, 9)}, {"n", 7}};
  StateDictStager stager(kind.options());
  for (int round = 0; round < 3; ++round) {
    t.data<std::int32_t>()[8] = round;
    const auto staged = stager.stage_async(state).get();
    CHECK_FALSE(compare(state, staged));
    CHECK(tensor(staged, "t").is_pinned() == kind.pin());
    CHECK(tensor(staged, "t").is_shared() == kind.share());
  }
}

TEST_CASE("asynchronous: the source changes the moment it is staged, thousands of times") {
  const Dict state{{"a", Tensor::zeros({16384}, DType::kI32)},
                   {"b", Tensor::zeros({1000}, DType::kI32)}};
  StateDictStager stager;
  bool right = true;
  for (std::int32_t round = 1; round <= 3000 && right; ++round) {
    for (const auto& [name, value] : state) fill(value.as<Tensor>(), round);
    auto work = stager.stage_async(state);
    work.wait();
    for (const auto& [name, value] : state) fill(value.as<Tensor>(), -round);
    const auto staged = work.get();
    for (const auto& [name, value] : state) right &= holds_only(tensor(staged, name), round);
  }
  CHECK(right);
  CHECK(stager.plans() == 1);
}

TEST_CASE("asynchronous: staged is not ready while anything is still to be read") {
  const Dict state{{"a", Tensor::full<std::int32_t>({1000}, 1)},
                   {"b", Tensor::full<std::int32_t>({1000}, 1)}};
  test::Gate gate;
  StateDictStager stager({.pace = &gate});
  auto work = stager.stage_async(state);
  gate.wait_for_a_piece();
  CHECK_FALSE(work.ready());
  CHECK_THROWS_AS(work.wait(Deadline::after(std::chrono::milliseconds(1))), Timeout);
  // What has not been read may still change.
  fill(tensor(state, "b"), 2);
  gate.open();
  const auto staged = work.get();
  CHECK(holds_only(tensor(staged, "a"), 1));
  CHECK(holds_only(tensor(staged, "b"), 2));
}

TEST_CASE("asynchronous: sources are kept alive until they are staged, and no longer") {
  Dict state{{"w", Tensor::full<std::int32_t>({1000}, 5)}, {"v", List{Tensor::scalar(6)}}};
  const WeakStorage w(tensor(state, "w").storage());
  const WeakStorage v(state.at("v").at(0).as<Tensor>().storage());
  test::Gate gate;
  StateDictStager stager({.pace = &gate});
  auto work = stager.stage_async(state);
  state.clear();
  gate.wait_for_a_piece();
  CHECK_FALSE(w.expired());
  CHECK_FALSE(v.expired());
  gate.open();
  work.wait();
  CHECK(w.expired());
  CHECK(v.expired());
  const auto staged = work.get();
  CHECK(holds_only(tensor(staged, "w"), 5));
  CHECK(staged.at("v").at(0).as<Tensor>().item<int>() == 6);
}

TEST_CASE("asynchronous: the tree and its scalars are those of the call") {
  Dict state{{"n", 1}, {"l", List{1}}, {"w", Value(Tensor::scalar(1), Dict{{"k", 1}})}};
  test::Gate gate;
  StateDictStager stager({.pace = &gate});
  auto work = stager.stage_async(state);
  const auto expected = state.clone();
  state.set("n", 2);
  List list = state.at("l").as<List>();
  list.push_back(2);
  state.at("w")->attributes()->set("k", 2);
  state.erase("w");
  gate.open();
  CHECK_FALSE(compare(expected, work.get()));
}

TEST_CASE("asynchronous: stagings are done in the order of their calls") {
  const Dict state{{"w", Tensor::full<std::int32_t>({1000}, 1)}};
  const Dict other{{"w", Tensor::full<std::int32_t>({1000}, 2)}};
  test::Gate gate;
  StateDictStager stager({.pace = &gate});
  auto first = stager.stage_async(state);
  auto second = stager.stage_async(other);
  gate.open();
  const auto staged = second.get();
  CHECK(first.ready());
  CHECK(holds_only(tensor(staged, "w"), 2));
  // A synchronous one waits for those before it.
  gate.close();
  auto third = stager.stage_async(state);
  gate.open();
  CHECK(holds_only(tensor(stager.stage(other), "w"), 2));
  CHECK(third.ready());
}

TEST_CASE("asynchronous: destroying a stager with work under way ends it, and frees the sources") {
  Dict state{{"w", Tensor::full<std::int32_t>({1000}, 5)}};
  const WeakStorage source(tensor(state, "w").storage());
  test::Gate gate(true);
  auto stager = std::make_unique<StateDictStager>(StagerOptions{.pace = &gate});
  const auto before = stager->stage(state);
  gate.close();
  auto running = stager->stage_async(state);
  auto queued = stager->stage_async(state);
  gate.wait_for_a_piece();
  state.clear();
  CHECK_FALSE(source.expired());
  stager.reset();
  CHECK(source.expired());
  CHECK_THROWS_AS(running.get(), Cancelled);
  CHECK_THROWS_AS(queued.get(), Cancelled);
  // What was returned before lives on.
  CHECK(holds_only(tensor(before, "w"), 5));
}

TEST_CASE("asynchronous: a staging given up ends, and the next one is whole") {
  const Dict state{{"w", Tensor::full<std::int32_t>({1000}, 5)}};
  test::Gate gate;
  StateDictStager stager({.pace = &gate});
  {
    const auto given_up = stager.stage_async(state);
    gate.wait_for_a_piece();
  }
  stager.clear();  // returns when it has ended, though the gate is closed
  gate.open();
  fill(tensor(state, "w"), 6);
  CHECK(holds_only(tensor(stager.stage_async(state).get(), "w"), 6));
}

TEST_CASE("asynchronous: errors arrive once, and the stager goes on") {
  const Dict state{{"w", Tensor::full<std::int32_t>({1000}, 5)}};
  const auto far = Storage::wrap(nullptr, 0, nullptr, {}, {DeviceType::kCuda, 1});
  test::Gate gate(true);
  StateDictStager stager({.pace = &gate, .verify_source = true});
  CHECK_THROWS_WITH(stager.stage_async(Dict{{"x", Tensor::on_storage(far, DType::kF32, {0})}}),
                    contains_text("x is on cuda:1"));
  gate.close();
  auto work = stager.stage_async(state);
  gate.wait_for_a_piece();
  fill(tensor(state, "w"), 6);
  gate.open();
  CHECK_THROWS_AS(work.wait(), InvalidState);
  CHECK_FALSE(work.valid());
  CHECK_NOTHROW(work.wait());
  CHECK_FALSE(compare(state, stager.stage_async(state).get()));
  CHECK_FALSE(compare(state, stager.stage(state)));
}

TEST_CASE("asynchronous: verify_source names the tensor that changed in between") {
  const auto base = Tensor::full<std::int32_t>({10, 10}, 5);
  const auto changed = GENERATE(0, 1, 2, 3);
  const Dict state{{"model", Dict{{"left", base.narrow(1, 0, 5)}, {"right", base.narrow(1, 5, 5)}}},
                   {"other", Value(Tensor::scalar(1), Dict{{"ema", Tensor::scalar(2)}})}};
  test::Gate gate;
  StateDictStager stager({.pace = &gate, .verify_source = true});
  auto work = stager.stage_async(state);
  gate.wait_for_a_piece();
  const auto path = std::vector<std::string>{"", "model.right", "other", "other.%@.ema"}.at(
      static_cast<std::size_t>(changed));
  if (changed == 1) base.data<std::int32_t>()[17] = 0;
  if (changed == 2) fill(tensor(state, "other"), 0);
  if (changed == 3) fill(state.at("other")->attributes()->at("ema").as<Tensor>(), 0);
  gate.open();
  try {
    const auto staged = work.get();
    CHECK_FALSE(compare(state, staged));
    CHECK(path.empty());
  } catch (const InvalidState& e) {
    CHECK(e.path() == path);
    CHECK_THAT(e.what(), contains_text("changed while it was being staged"));
  }
}

TEST_CASE("budget: a bandwidth cap is kept") {
  // Made-up times; one who asks is served at the time that he is told, and asks again then.
  constexpr std::uint64_t kRate = 100'000'000;
  BandwidthCap cap(kRate);
  const BandwidthCap::TimePoint start{std::chrono::hours(1)};
  std::vector<std::pair<BandwidthCap::TimePoint, std::uint64_t>> served;
  auto now = start;
  for (std::uint64_t i = 0; i < 2000; ++i) {
    const auto bytes = 1 + (i * 7919) % kPaceBytes;
    if (i % 100 == 99) now += std::chrono::milliseconds(300);  // unused time is not saved up
    now = cap.reserve(bytes, now);
    served.emplace_back(now, bytes);
  }
  std::uint64_t all = 0, most = 0;
  for (std::size_t from = 0; from < served.size(); ++from) {
    std::uint64_t bytes = 0;
    for (std::size_t i = from; i < served.size(); ++i) {
      if (served[i].first - served[from].first >= std::chrono::seconds(1)) break;
      bytes += served[i].second;
    }
    most = std::max(most, bytes);
    all += served[from].second;
  }
  CHECK(most <= kRate + kPaceBytes);
  // And it is used: no slower than the cap but for the pauses.
  const std::chrono::duration<double> took = now - start;
  CHECK(took.count() < static_cast<double>(all) / kRate + 20 * 0.3);
  CHECK_THROWS_AS(BandwidthCap(0), InvalidArgument);
}

TEST_CASE("budget: every byte that is copied was asked for, in small pieces") {
  const Dict state{{"large", Tensor::full<std::int32_t>({2'000'000}, 5)},
                   {"view", Tensor::full<std::int32_t>({10}, 5).narrow(0, 1, 1)},
                   {"n", 1}};
  test::Gate gate(true);
  StateDictStager stager({.pace = &gate});
  const auto staged = stager.stage(state);
  CHECK_FALSE(compare(state, staged));
  CHECK(gate.bytes() >= stager.cached_bytes());
  CHECK(gate.bytes() < stager.cached_bytes() + 4096);  // and the scalars
  CHECK(gate.largest() == kPaceBytes);
  BandwidthCap cap(1ULL << 40U);
  StateDictStager capped({.pace = &cap});
  CHECK_FALSE(compare(state, capped.stage_async(state).get()));
}

TEST_CASE("budget: a bandwidth cap's wait ends with the stager") {
  BandwidthCap cap(1);  // a byte a second
  auto stager = std::make_unique<StateDictStager>(StagerOptions{.pace = &cap});
  const Dict state{{"w", Tensor::full<std::int32_t>({1000}, 5)}, {"v", Tensor::scalar(5)}};
  auto work = stager->stage_async(state);
  stager.reset();
  CHECK_THROWS_AS(work.get(), Cancelled);
}

TEST_CASE("budget: a reused asynchronous stager keeps its cache") {
  CountingMemory counting(host_memory());
  StateDictStager stager({.memory = &counting});
  const Dict state{{"w", Tensor::full<std::int32_t>({100000}, 5)}};
  const void* memory = nullptr;
  for (int round = 0; round < 20; ++round) {
    fill(tensor(state, "w"), round);
    const auto staged = round % 5 == 4 ? stager.stage(state) : stager.stage_async(state).get();
    CHECK(holds_only(tensor(staged, "w"), round));
    if (round == 0) memory = tensor(staged, "w").storage().data();
    CHECK(tensor(staged, "w").storage().data() == memory);
  }
  CHECK(stager.plans() == 1);
  CHECK(stager.cached_storages() == 1);
  CHECK(counting.counts().allocations == 1);
}
