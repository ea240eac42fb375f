#include <meshstage/core/tree/compare.hpp>
#include <meshstage/core/tree/node.hpp>
#include <meshstage/core/tree/value.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;
using Catch::Matchers::Contains;

TEST_CASE("values take the kind one would expect") {
  CHECK(Value().is_null());
  CHECK(Value(nullptr).is_null());
  CHECK(Value("text").as<std::string>() == "text");
  CHECK(Value(true).kind() == ValueKind::kBool);
  CHECK(Value(std::uint8_t{7}).as<std::int64_t>() == 7);
  CHECK(Value(1.5F).as<double>() == 1.5);
  CHECK(Value(std::uint64_t{1} << 62U).as<std::uint64_t>() == std::uint64_t{1} << 62U);
  CHECK_THROWS_AS(Value(UINT64_MAX), InvalidArgument);
  CHECK_THROWS_AS(Value(300).as<std::uint8_t>(), InvalidArgument);
  CHECK_THROWS_AS(Value(-1).as<std::uint64_t>(), InvalidArgument);
  CHECK_THROWS_AS(Value(1).as<double>(), InvalidArgument);
  CHECK_THROWS_AS(Value(1).as<bool>(), InvalidArgument);
  CHECK_THROWS_AS(Value(Tensor()), InvalidArgument);
  CHECK_THROWS_AS(Value(NodePtr()), InvalidArgument);
}

TEST_CASE("errors name the path") {
  const auto weight = Tensor::zeros({2}, DType::kF32);
  Value v = Dict{{"a", Dict{{"b", weight}, {"list", List{1, "two"}}}}};
  CHECK(v.at("a").at("b").as<Tensor>().identity() == weight.identity());
  CHECK(v.at("a").at("list").at(1).as<std::string>() == "two");
  CHECK_THROWS_WITH(v.at("a").at("list").at(1).as<Tensor>(),
                    Contains("a.list.1") && Contains("string \"two\""));
  CHECK_THROWS_WITH(v.at("a").at("c"), Contains("a: no key \"c\"") && Contains("\"b\""));
  CHECK_THROWS_WITH(v.at("a").at("list").at(2), Contains("a.list: no element 2"));
  CHECK_THROWS_WITH(v.at("a").at("b").at("x"), Contains("a.b: is F32[2]"));
  CHECK_THROWS_AS(v.at("a").at("list").at(-1), InvalidArgument);
  try {
    static_cast<void>(v.at("a").at("b").as<Dict>());
    FAIL("a tensor is no dict");
  } catch (const InvalidArgument& e) {
    CHECK(e.path() == "a.b");
  }
}

TEST_CASE("containers are handles: copying shares, clone copies") {
  Dict inner{{"x", 1}};
  Dict outer{{"left", inner}, {"right", inner}, {"tuple", Tuple{inner, 2}}};
  Value(outer).at("left").at("x").set(5);
  CHECK(inner.at("x").as<int>() == 5);
  CHECK(Value(outer).at("right").at("x").as<int>() == 5);
  const Dict copy = outer.clone();
  inner.set("x", 6);
  CHECK(copy.at("left").at("x").as<int>() == 5);
  CHECK(copy.at("left").as<Dict>().identity() == copy.at("tuple").at(0).as<Dict>().identity());
  CHECK_FALSE(compare(copy, outer) == std::nullopt);
  CHECK(compare(copy, outer, {.values = false}) == std::nullopt);
}

TEST_CASE("a dict finds each of many keys, whatever was added and erased before") {
  Dict d;
  // Multiples of a power of two, and numbers as text: keys that a careless table puts in one place.
  const auto key = [](int i) { return i % 2 == 0 ? Key(i * 4096) : Key(std::to_string(i)); };
  constexpr int kKeys = 3000;
  for (int i = 0; i < kKeys; ++i) d.set(key(i), i);
  for (int i = 0; i < kKeys; i += 500) CHECK(d.erase(key(i)));
  int wrong = 0;
  for (int i = 0; i < kKeys; ++i) {
    const Value* const found = d.find(key(i));
    if (i % 500 == 0 ? found != nullptr : (found == nullptr || found->as<int>() != i)) ++wrong;
  }
  CHECK(wrong == 0);
  CHECK_FALSE(d.contains("none"));
  CHECK_FALSE(d.erase(key(500)));
  d[key(500)] = "again";
  CHECK((d.end() - 1)->first == key(500));
  d.clear();
  CHECK_FALSE(d.contains(key(1)));
  d.set(key(1), 7);
  CHECK(d.at(key(1)).as<int>() == 7);
}

TEST_CASE("a dict with the keys of another is its own") {
  const Dict from{{"z", 1}, {3, List{}}, {"a", "x"}};
  Dict d = Dict::with_keys_of(from);
  REQUIRE(d.size() == 3);
  CHECK(d.begin()[1].first == Key(3));
  CHECK(d.find("a")->is_null());
  d.set("a", 5);
  d.set("new", 6);
  CHECK(d.find("new")->as<int>() == 6);
  CHECK(from.find("a")->as<std::string>() == "x");
  CHECK_FALSE(from.contains("new"));
  CHECK(Dict::with_keys_of(Dict()).empty());
}

TEST_CASE("a dict keeps the order of insertion and looks keys up by hash") {
  Dict d{{"z", 1}, {3, 2}, {"3", 3}};
  d["a"] = 4;
  CHECK(d.at(3).as<int>() == 2);
  CHECK(d.at("3").as<int>() == 3);
  CHECK(d.erase(3));
  CHECK_FALSE(d.erase(3));
  d.set("z", 9);
  std::string order;
  for (const auto& [key, value] : d)
    order += key.string() + "=" + std::to_string(value.as<int>()) + " ";
  CHECK(order == "z=9 3=3 a=4 ");
  CHECK_THROWS_AS((Dict{{"a", 1}, {"a", 2}}), InvalidArgument);
  Dict many;
  for (int i = 0; i < 1000; ++i) many["k" + std::to_string(i)] = i;
  for (int i = 0; i < 1000; ++i) CHECK(many.at("k" + std::to_string(i)).as<int>() == i);
}

TEST_CASE("attributes belong to the leaf, not to the tensor") {
  const auto t = Tensor::zeros({1}, DType::kF32);
  const Value plain = t;
  Value marked(t, Dict{{"note", "x"}});
  CHECK(plain.attributes() == nullptr);
  CHECK(marked.attributes()->at("note").as<std::string>() == "x");
  CHECK(marked.as<Tensor>().identity() == t.identity());
  const Value copy = marked.clone();
  marked.attributes()->set("note", "y");
  CHECK(copy.attributes()->at("note").as<std::string>() == "x");
}

TEST_CASE("a cycle is refused with its path") {
  Dict d{{"a", List{}}};
  Value v = d;
  auto list = v.at("a").as<List>();
  list.push_back(Dict{{"back", d}});
  CHECK_THROWS_WITH(v.clone(), Contains("a.0.back") && Contains("cycle"));
  CHECK_THROWS_WITH(compare(v, v), Contains("a.0.back") && Contains("cycle"));
  list.clear();
}

TEST_CASE("a tree too deep is refused") {
  Value v = 1;
  for (std::size_t i = 0; i <= kMaxTreeDepth; ++i) v = List{v};
  CHECK_THROWS_WITH(v.clone(), Contains("deeper"));
}

TEST_CASE("a registry makes what is registered and keeps the rest opaque") {
  NodeRegistry registry;
  registry.add("app.Pair", [](std::vector<Node::Child> children, const Value& auxiliary) {
    return std::make_shared<OpaqueNode>("made", std::move(children), auxiliary);
  });
  CHECK_THROWS_AS(registry.add("app.Pair", [](auto, const auto&) { return NodePtr(); }),
                  InvalidArgument);
  CHECK(registry.make("app.Pair", {}, {})->type_name() == "made");
  const auto other = registry.make("app.Other", {{"x", 1}}, "aux");
  CHECK(other->type_name() == "app.Other");
  const auto rebuilt = other->rebuild({2});
  CHECK(rebuilt->children().at(0).value.as<int>() == 2);
  CHECK(other->children().at(0).value.as<int>() == 1);
  CHECK_THROWS_AS(other->rebuild({}), InvalidArgument);
}
