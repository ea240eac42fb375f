#include <memory>

#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/tree/compare.hpp>
#include <meshstage/core/tree/node.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;

namespace {

const Tensor& tensor(const Value& v, const char* key) { return v.at(key).as<Tensor>(); }

}  // namespace

TEST_CASE(
    "views: two storages are staged, their bytes counted once, and views share after as before") {
  const auto a = Tensor::arange<float>(12).view({3, 4});
  const auto b = Tensor::arange<std::int64_t>(10);
  const Dict state{
      {"a", a},
      {"reshaped", a.view({12})},
      {"b", b},
      {"struct", std::make_shared<OpaqueNode>(
                     "app.S", std::vector<Node::Child>{{"part", b.narrow(0, 3, 4)}}, 1)}};
  StateDictStager stager;
  const auto staged = stager.stage(state);
  CHECK(stager.cached_storages() == 2);
  CHECK(stager.cached_bytes() == 48 + 80);
  CHECK_FALSE(compare(state, staged));
  CHECK(tensor(staged, "a").storage() == tensor(staged, "reshaped").storage());
  const auto part = staged.at("struct").as<NodePtr>()->children()[0].value.as<Tensor>();
  CHECK(part.storage() == tensor(staged, "b").storage());
  CHECK(part.storage_offset() == 3);
  tensor(staged, "b").data<std::int64_t>()[3] = -1;
  CHECK(part.data<std::int64_t>()[0] == -1);
}

TEST_CASE("cpu_storage_independence: CPU sources are really copied") {
  const Dict state{{"w", Tensor::full<float>({8}, 1)}, {"l", List{1}}};
  StateDictStager stager;
  const auto staged = stager.stage(state);
  CHECK(tensor(staged, "w").storage().data() != tensor(state, "w").storage().data());
  tensor(state, "w").data<float>()[0] = 5;
  CHECK(tensor(staged, "w").data<float>()[0] == 1);
  CHECK(staged.at("l").as<List>().identity() != state.at("l").as<List>().identity());
}

TEST_CASE("caching: staging again gives the new values in the same host memory") {
  Dict state{{"w", Tensor::full<float>({100}, 1)}, {"n", 1}};
  StateDictStager stager;
  const auto first = stager.stage(state);
  const void* memory = tensor(first, "w").storage().data();
  for (int round = 2; round <= 3; ++round) {
    tensor(state, "w").copy_from(Tensor::full<float>({100}, static_cast<float>(round)));
    state.set("n", round);
    const auto again = stager.stage(state);
    CHECK(tensor(again, "w").storage().data() == memory);
    CHECK(tensor(again, "w").data<float>()[99] == static_cast<float>(round));
    CHECK(again.at("n").as<int>() == round);
    CHECK(first.at("n").as<int>() == 1);
    CHECK(stager.cached_storages() == 1);
    CHECK(stager.plans() == 1);
  }
}

TEST_CASE("structure changes re-plan, and what was staged before lives as long as its Value") {
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

TEST_CASE("budget: a cap on host memory is refused, and the stager stays usable") {
  CappedMemory capped(host_memory(), 1 << 20, "staging");
  StateDictStager stager({.memory = &capped});
  const Dict small{{"a", Tensor::full<float>({100}, 1)}};
  const auto staged = stager.stage(small);
  CHECK_THROWS_AS(stager.stage(Dict{{"a", Tensor::zeros({1 << 20}, DType::kF32)}}), OutOfMemory);
  CHECK_FALSE(compare(small, staged));
  CHECK_FALSE(compare(small, stager.stage(small)));
  CHECK(stager.plans() == 1);
}

TEST_CASE("tensor_attrs, containers: attributes arrive, one object held in two places stays one") {
  const auto t = Tensor::arange<float>(4);
  const List list{1, t};
  const Dict state{{"t", Value(t, Dict{{"note", "n"}, {"more", t.narrow(0, 1, 2)}})},
                   {"same", t},
                   {"x", list},
                   {"y", Tuple{list}}};
  StateDictStager stager;
  const auto staged = stager.stage(state);
  CHECK_FALSE(compare(state, staged));
  CHECK(tensor(staged, "t").identity() == tensor(staged, "same").identity());
  CHECK(staged.at("x").as<List>().identity() == staged.at("y").at(0).as<List>().identity());
  CHECK(staged.at("t")->attributes()->at("note").as<std::string>() == "n");
}

TEST_CASE("empty_tensors: without elements shape and dtype are kept") {
  const Dict state{{"one", Tensor::empty({0}, DType::kF16)},
                   {"two", Tensor::empty({2, 0}, DType::kI8)},
                   {"three", Tensor::empty({0, 1, 3}, DType::kC128)},
                   {"scalar", Tensor::scalar(1.5F)}};
  StateDictStager stager;
  CHECK_FALSE(compare(state, stager.stage(state)));
  CHECK(stager.cached_storages() == 4);
}

TEST_CASE("dead storages: a new storage at an old address is not mistaken for the old one") {
  StateDictStager stager;
  for (int round = 0; round < 50; ++round) {
    const Dict state{{"w", Tensor::full<std::int32_t>({1000 + round % 3}, round)}};
    CHECK_FALSE(compare(state, stager.stage(state)));
  }
}
