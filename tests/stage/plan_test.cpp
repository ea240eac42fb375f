#include <map>
#include <thread>

#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;

namespace {

std::map<std::string, std::uint64_t> offsets(const StagingPlan& plan) {
  std::map<std::string, std::uint64_t> result;
  for (const auto& s : plan.layout().segments) result[s.name] = s.offset - plan.layout().data_begin;
  return result;
}

Dict tensors(std::initializer_list<std::pair<const char*, std::int64_t>> sizes) {
  Dict d;
  for (const auto& [name, n] : sizes) d.set(name, Tensor::full<std::uint8_t>({n}, 7));
  return d;
}

// Segments ascend, are aligned and do not overlap.
void check_sound(const ImageLayout& layout) {
  std::uint64_t end = layout.data_begin;
  CHECK(layout.data_begin % 4096 == 0);
  for (const auto& s : layout.segments) {
    CHECK(s.offset % 64 == 0);
    if (s.bytes == 0) continue;
    CHECK(s.offset >= end);
    end = s.offset + s.bytes;
  }
  CHECK(layout.values_begin >= end);
  CHECK(layout.trailer_begin > layout.values_begin);
  CHECK(layout.manifest.size() == layout.data_begin);
}

}  // namespace

TEST_CASE("a plan fits while the structure stays") {
  const auto base = Tensor::arange<float>(12).view({3, 4});
  const List shared{1};
  Dict state{{"w", base},
             {"v", base.narrow(0, 1, 1)},
             {"l", List{shared, shared, Tuple{"x", nullptr}}},
             {"n", 1}};
  const auto plan = StagingPlan::compile(state);
  CHECK(plan.matches(state));
  SECTION("other scalars") {
    state.set("n", "text");
    CHECK(plan.matches(state));
  }
  SECTION("the same tensors in a rebuilt tree") { CHECK(plan.matches(state.clone())); }
  SECTION("other tensors of the same structure and sharing") {
    const auto other = base.clone();
    state.set("w", other);
    state.set("v", other.narrow(0, 1, 1));
    CHECK(plan.matches(state));
  }
  SECTION("not with other sharing of storages") {
    state.set("w", base.clone());
    CHECK_FALSE(plan.matches(state));
  }
  SECTION("not where two tensors begin to share") {
    Dict two{{"a", Tensor::zeros({4}, DType::kF32)}, {"b", Tensor::zeros({4}, DType::kF32)}};
    const auto of_two = StagingPlan::compile(two);
    two.set("b", two.at("a"));
    CHECK_FALSE(of_two.matches(two));
    two.set("b", two.at("a").as<Tensor>().view({4}));
    CHECK_FALSE(of_two.matches(two));
  }
  SECTION("not where containers begin or cease to share") {
    state.at("l").set(List{shared, shared.clone(), Tuple{"x", nullptr}});
    CHECK_FALSE(plan.matches(state));
    const Dict apart{{"a", List{}}, {"b", List{}}};
    const List one;
    CHECK_FALSE(StagingPlan::compile(apart).matches(Dict{{"a", one}, {"b", one}}));
  }
  SECTION("not with another shape, stride, dtype, key, order, length, kind or attribute") {
    for (const auto& other :
         std::initializer_list<Dict>{{{"w", base.view({4, 3})}},
                                     {{"w", base.transpose(0, 1)}},
                                     {{"w", base.narrow(1, 0, 4)}, {"x", 1}},
                                     {{"W", base}},
                                     {{"w", List{base}}},
                                     {{"w", 1}},
                                     {{"w", Value(base, Dict{{"a", 1}})}},
                                     {{"w", Tensor::zeros({3, 4}, DType::kI32)}},
                                     {}}) {
      CHECK_FALSE(StagingPlan::compile(Dict{{"w", base}}).matches(other));
    }
    CHECK_FALSE(StagingPlan::compile(Dict{{"a", 1}, {"b", 1}}).matches(Dict{{"b", 1}, {"a", 1}}));
    CHECK_FALSE(StagingPlan::compile(List{1}).matches(List{1, 2}));
    CHECK_FALSE(StagingPlan::compile(List{1}).matches(Tuple{1}));
    // A storage that is larger below the same view.
    CHECK_FALSE(StagingPlan::compile(Tensor::zeros({4}, DType::kU8))
                    .matches(Tensor::zeros({8}, DType::kU8).narrow(0, 0, 4)));
  }
  SECTION("not when the scalars outgrow their room, and the next plan has room") {
    state.set("n", Bytes(100000));
    CHECK_FALSE(plan.matches(state));
    CHECK(StagingPlan::compile(state, &plan).matches(state));
  }
}

TEST_CASE("a plan keeps no tensor alive, and a source does until it is copied") {
  Dict state{{"w", Tensor::zeros({4}, DType::kF32)}};
  const WeakStorage weak(state.at("w").as<Tensor>().storage());
  const auto plan = StagingPlan::compile(state);
  auto source = plan.capture(state);
  state.clear();
  CHECK_FALSE(weak.expired());
  source.reset();
  CHECK(weak.expired());
}

TEST_CASE("scalars are those of the moment of capture, however the tree changes afterwards") {
  Dict state{{"n", 1}, {"w", Tensor::scalar(5)}};
  const auto plan = StagingPlan::compile(state);
  const auto source = plan.capture(state);
  state.set("n", 2);
  state.erase("w");
  const auto memory = Storage::allocate(plan.layout().image_bytes);
  Watermark progress;
  plan.write_manifest(memory.bytes());
  plan.copy(*source, memory.bytes(), progress);
  plan.seal(test::identity_of_step(5), memory.bytes(), progress);
  const auto back = decode_image(memory.bytes(), nullptr);
  CHECK(back.at("n").as<int>() == 1);
  CHECK(back.at("w").as<Tensor>().item<int>() == 5);
}

TEST_CASE("a storage is staged once, however many views it has, and whole") {
  const auto base = Tensor::arange<float>(1000);
  const auto plan = StagingPlan::compile(
      Dict{{"a", base.narrow(0, 10, 5)}, {"b", base.view({10, 100}).transpose(0, 1)}});
  CHECK(plan.layout().segments.size() == 1);
  CHECK(plan.layout().storage_bytes == 4000);
}

TEST_CASE(
    "structure changes: what stayed keeps its place, freed ranges are filled, the rest is "
    "appended") {
  auto state = tensors({{"a", 10000}, {"b", 640}, {"c", 10000}, {"d", 10000}});
  const auto first = StagingPlan::compile(state);
  check_sound(first.layout());
  state.erase("b");
  state.set("e", Tensor::full<std::uint8_t>({600}, 1));
  state.set("f", Tensor::full<std::uint8_t>({700}, 1));
  state.set("c", Tensor::full<std::uint8_t>({10000}, 2));  // another storage, same name and size
  const auto second = StagingPlan::compile(state, &first);
  check_sound(second.layout());
  const auto before = offsets(first);
  const auto after = offsets(second);
  for (const auto* name : {"a", "c", "d"}) CHECK(after.at(name) == before.at(name));
  CHECK(after.at("e") == before.at("b"));
  CHECK(after.at("f") > before.at("d"));
  CHECK(second.layout().data_begin == first.layout().data_begin);
  SECTION("a renamed storage keeps its place too") {
    state.set("renamed", state.at("a"));
    state.erase("a");
    CHECK(offsets(StagingPlan::compile(state, &second)).at("renamed") == before.at("a"));
  }
  SECTION("above 10 % of waste everything is laid out anew") {
    state.erase("a");
    const auto third = StagingPlan::compile(state, &second);
    check_sound(third.layout());
    CHECK(third.layout().values_begin - third.layout().data_begin == 10048 + 10048 + 640 + 704);
  }
}

TEST_CASE("random changes of structure keep layouts sound and images right") {
  Dict state;
  std::optional<StagingPlan> plan;
  std::uint32_t seed = 1;
  const auto random = [&](std::uint32_t n) {
    return (seed = seed * 1664525 + 1013904223) / 65536 % n;
  };
  for (int round = 0; round < 60; ++round) {
    for (int k = 0; k < 4; ++k) {
      const auto name = "t" + std::to_string(random(12));
      if (random(3) == 0)
        state.erase(name);
      else
        state.set(name, Tensor::full<std::uint8_t>({static_cast<std::int64_t>(random(5000))},
                                                   static_cast<std::uint8_t>(random(256))));
    }
    plan = StagingPlan::compile(state, plan ? &*plan : nullptr);
    check_sound(plan->layout());
    const auto memory = Storage::allocate(plan->layout().image_bytes);
    Watermark progress;
    plan->write_manifest(memory.bytes());
    plan->copy(state, memory.bytes(), progress);
    plan->seal(test::identity_of_step(7), memory.bytes(), progress);
    verify_image(memory.bytes());
    REQUIRE_FALSE(compare(state, decode_image(memory.bytes(), nullptr)));
  }
}

TEST_CASE("the same state gives the same bytes, whatever was in the memory before") {
  const auto state = test::gpt2_state(131, 2, 16, 32);
  const auto a = test::make_image(state);
  const auto b = test::make_image(state);
  CHECK(std::memcmp(a.bytes().data(), b.bytes().data(), a.bytes().size()) == 0);
}

TEST_CASE("sealing follows the copying on another thread") {
  const Dict state{{"w", Tensor::arange<float>(3 << 20)}, {"n", 1}};
  const auto reference = test::make_image(state);
  const auto memory = Storage::allocate(reference.bytes().size());
  Watermark progress;
  ImageInfo info;
  std::thread sealer(
      [&] { info = reference.plan.seal(reference.info.identity, memory.bytes(), progress); });
  reference.plan.write_manifest(memory.bytes());
  reference.plan.copy(state, memory.bytes(), progress);
  sealer.join();
  CHECK(info == reference.info);
  CHECK(progress.bytes() == reference.info.image_bytes);
  CHECK(verify_image(memory.bytes()) == info);
}

TEST_CASE("a failed watermark stops the copying and the sealing") {
  const Dict state{{"w", Tensor::zeros({1 << 20}, DType::kF32)}};
  const auto plan = StagingPlan::compile(state);
  const auto memory = Storage::allocate(plan.layout().image_bytes);
  Watermark progress;
  progress.fail(std::make_exception_ptr(Cancelled("stop")));
  CHECK_THROWS_AS(plan.copy(state, memory.bytes(), progress), Cancelled);
  CHECK_THROWS_AS(plan.seal(test::identity_of_step(5), memory.bytes(), progress), Cancelled);
  Watermark idle;
  CHECK_THROWS_AS(plan.seal(test::identity_of_step(5), memory.bytes(), idle,
                            Deadline::after(std::chrono::milliseconds(0))),
                  Timeout);
}

TEST_CASE("ten thousand small tensors are planned, matched and copied") {
  Dict state;
  for (int i = 0; i < 10000; ++i)
    state.set("t" + std::to_string(i), Tensor::full<float>({1024}, static_cast<float>(i)));
  const auto image = test::make_image(state, 1 << 20);
  CHECK(image.plan.matches(state));
  CHECK(image.plan.layout().storage_bytes == 40960000);
  const auto back = decode_image(image.bytes(), nullptr);
  CHECK_FALSE(compare(state, back));
}

TEST_CASE("a buffer too small, another structure and bad options are refused") {
  const Dict state{{"w", Tensor::zeros({8}, DType::kF32)}};
  const auto plan = StagingPlan::compile(state);
  const auto memory = Storage::allocate(plan.layout().image_bytes);
  Watermark progress;
  CHECK_THROWS_AS(plan.copy(state, memory.bytes().first(100), progress), InvalidArgument);
  CHECK_THROWS_AS(plan.write_manifest(memory.bytes().first(100)), InvalidArgument);
  CHECK_THROWS_AS(plan.copy(Dict{}, memory.bytes(), progress), StructureMismatch);
  CHECK_THROWS_AS(StagingPlan::compile(state, nullptr, {.block_bytes = 5000}), InvalidArgument);
  CHECK_THROWS_AS(StagingPlan::compile(state, nullptr, {.block_bytes = 0}), InvalidArgument);
  auto identity = test::identity_of_step(5);
  identity.job = std::string(kMaxJobBytes + 1, 'x');
  plan.copy(state, memory.bytes(), progress);
  CHECK_THROWS_AS(plan.seal(identity, memory.bytes(), progress), InvalidArgument);
}

TEST_CASE("a tensor on a device that cannot be used, and a cycle, are refused with their path") {
  const auto far = Storage::wrap(nullptr, 0, nullptr, {}, {DeviceType::kCuda, 1});
  const Dict state{{"m", List{Tensor::on_storage(far, DType::kF32, {0})}}};
  CHECK_THROWS_WITH(StagingPlan::compile(state), Catch::Matchers::Contains("m.0 is on cuda:1"));
  Dict cycle{{"a", List{}}};
  auto list = cycle.at("a").as<List>();
  list.push_back(cycle);
  CHECK_THROWS_WITH(StagingPlan::compile(cycle),
                    Catch::Matchers::Contains("a.0") && Catch::Matchers::Contains("cycle"));
  CHECK_FALSE(StagingPlan::compile(Dict{{"a", List{Dict{{"a", 1}}}}}).matches(cycle));
  list.clear();
}
