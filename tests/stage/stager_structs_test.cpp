// Structs declared by their fields, as PyTorch stages dataclasses.
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/tree/compare.hpp>
#include <meshstage/core/tree/fields.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;

namespace {

struct Plain {
  Tensor weight;
  std::string name;
  std::vector<Tensor> buffers;
  List mixed;
  double rate = 0;
};
struct Nested {
  Plain inner;
  std::vector<Plain> more;
  std::int64_t step = 0;
};
struct Immutable {
  const Tensor weight;
  const std::string name;
  const std::vector<std::string> tags;
  const Plain inner;
};

Plain plain(float value) {
  const auto t = Tensor::full<float>({6}, value);
  return {t, "plain", {t.narrow(0, 2, 3), Tensor::scalar(7)}, List{"x", t, Tuple{1}}, 0.5};
}

}  // namespace

template <>
struct meshstage::Fields<Plain> {
  static constexpr auto type_name = "test.Plain";
  static constexpr auto members =
      std::tuple(field("weight", &Plain::weight), field("name", &Plain::name),
                 field("buffers", &Plain::buffers), field("mixed", &Plain::mixed),
                 field("rate", &Plain::rate));
};
template <>
struct meshstage::Fields<Nested> {
  static constexpr auto type_name = "test.Nested";
  static constexpr auto members = std::tuple(
      field("inner", &Nested::inner), field("more", &Nested::more), field("step", &Nested::step));
};
template <>
struct meshstage::Fields<Immutable> {
  static constexpr auto type_name = "test.Immutable";
  static constexpr auto members =
      std::tuple(field("weight", &Immutable::weight), field("name", &Immutable::name),
                 field("tags", &Immutable::tags), field("inner", &Immutable::inner));
};

TEST_CASE("dataclasses: plain structs are rebuilt as the same type, strings and lists inside") {
  const auto original = plain(1);
  const Dict state{{"p", struct_node(original)}, {"same", original.weight.view({2, 3})}};
  StateDictStager stager;
  const auto staged = stager.stage(state);
  CHECK_FALSE(compare(state, staged));
  CHECK(stager.cached_storages() == 2);
  const auto& copy = struct_of<Plain>(staged.at("p"));
  CHECK(copy.name == "plain");
  CHECK(copy.rate == 0.5);
  CHECK(copy.mixed[0].as<std::string>() == "x");
  CHECK(copy.mixed[1].as<Tensor>().identity() == copy.weight.identity());
  CHECK(copy.buffers.at(0).storage() == copy.weight.storage());
  CHECK(copy.buffers.at(0).storage_offset() == 2);
  CHECK(staged.at("same").as<Tensor>().storage() == copy.weight.storage());
  // It is a copy.
  original.weight.data<float>()[0] = 9;
  CHECK(copy.weight.data<float>()[0] == 1);
  CHECK(copy.weight.storage() != original.weight.storage());
  // And the structure of a struct is matched like any other.
  const auto again = stager.stage(state);
  CHECK(struct_of<Plain>(again.at("p")).weight.data<float>()[0] == 9);
  CHECK(stager.plans() == 1);
}

TEST_CASE("dataclasses: nested structs") {
  const Nested original{plain(1), {plain(2), plain(3)}, 40};
  StateDictStager stager;
  const Value state(struct_node(original));
  const auto staged = stager.stage(state);
  CHECK_FALSE(compare(state, staged));
  const auto& copy = struct_of<Nested>(staged);
  CHECK(copy.step == 40);
  REQUIRE(copy.more.size() == 2);
  CHECK(copy.more[1].weight.data<float>()[5] == 3);
  CHECK(copy.more[1].weight.storage() != original.more[1].weight.storage());
  CHECK(copy.inner.buffers.at(1).item<int>() == 7);
  // The source changes, every part of it: the copy does not follow, and a new staging has it.
  original.inner.buffers.at(1).data<int>()[0] = 8;
  original.more[1].weight.data<float>()[5] = 9;
  CHECK(copy.inner.buffers.at(1).item<int>() == 7);
  CHECK(copy.more[1].weight.data<float>()[5] == 3);
  CHECK_FALSE(compare(state, stager.stage(state)));
  CHECK(copy.more[1].weight.data<float>()[5] == 9);
  // Another number of elements is another structure.
  CHECK_FALSE(compare(struct_node(Nested{plain(1), {}, 41}),
                      stager.stage(struct_node(Nested{plain(1), {}, 41}))));
  CHECK(stager.plans() == 2);
}

TEST_CASE("dataclasses: immutable structs are built anew through their constructor") {
  const auto w = Tensor::full<float>({4}, 1);
  const Immutable original{w, "frozen", {"a", "b"}, plain(5)};
  const auto node = struct_node(original);
  const Dict state{{"i", node}, {"again", node}};
  StateDictStager stager;
  const auto staged = stager.stage(state);
  CHECK_FALSE(compare(state, staged));
  const auto& copy = struct_of<Immutable>(staged.at("i"));
  CHECK(copy.name == "frozen");
  CHECK(copy.tags == std::vector<std::string>{"a", "b"});
  CHECK(copy.inner.name == "plain");
  CHECK(copy.weight.storage() != w.storage());
  CHECK(&copy == &struct_of<Immutable>(staged.at("again")));  // one object in two places
  w.data<float>()[3] = 2;
  original.inner.weight.data<float>()[0] = 6;
  CHECK(copy.weight.data<float>()[3] == 1);
  CHECK(copy.inner.weight.data<float>()[0] == 5);
  CHECK(copy.inner.mixed[1].as<Tensor>().data<float>()[0] == 5);
  const auto again = stager.stage(state);
  CHECK_FALSE(compare(state, again));
  CHECK(struct_of<Immutable>(again.at("i")).weight.data<float>()[3] == 2);
}

TEST_CASE("dataclasses: an image gives back the same types, and restores into them") {
  const Dict state{{"p", struct_node(plain(1))},
                   {"i", struct_node(Immutable{Tensor::scalar(2.0F), "i", {"t"}, plain(5)})}};
  const auto image = test::make_image(state);
  NodeRegistry registry;
  add_struct<Plain>(registry);
  add_struct<Immutable>(registry);
  const auto back = decode_image(image.bytes(), nullptr, registry);
  CHECK_FALSE(compare(state, back));
  CHECK(struct_of<Immutable>(back.at("i")).inner.rate == 0.5);

  auto changed = plain(7);
  changed.name = "another";
  Dict target{{"p", struct_node(changed)},
              {"i", struct_node(Immutable{Tensor::scalar(8.0F), "j", {"u"}, plain(9)})}};
  const auto& in_place = struct_of<Plain>(target.at("p"));
  restore_into(image.bytes(), target);
  CHECK_FALSE(compare(state, target));
  CHECK(&struct_of<Plain>(target.at("p")) == &in_place);
  CHECK(in_place.name == "plain");
  CHECK(in_place.weight.storage() == changed.weight.storage());
  CHECK(changed.weight.data<float>()[0] == 1);
  CHECK(struct_of<Immutable>(target.at("i")).name == "i");
}
