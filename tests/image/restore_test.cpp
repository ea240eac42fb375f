#include <algorithm>

#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;
using Catch::Matchers::Contains;

namespace {

Dict state(float value, int step) {
  const auto base = Tensor::full<float>({4, 3}, value);
  return {
      {"w", base},
      {"tied", base},
      {"part", base.narrow(0, 1, 2)},
      {"step", step},
      {"list", List{value, Tuple{step, "x"}}},
      {"marked", Value(Tensor::scalar(value), Dict{{"scale", value}})},
      {"node", std::make_shared<OpaqueNode>(
                   "app.N", std::vector<Node::Child>{{"n", step}, {"d", Dict{{"k", step}}}}, 1)}};
}

// A node whose fields cannot change.
class Fixed : public Node {
 public:
  explicit Fixed(Value n) : n_(std::move(n)) {}
  [[nodiscard]] std::string type_name() const override { return "app.Fixed"; }
  [[nodiscard]] std::vector<Child> children() const override { return {{"n", n_}}; }
  [[nodiscard]] NodePtr rebuild(std::vector<Value> children) const override {
    return std::make_shared<Fixed>(children.at(0));
  }

 private:
  const Value n_;
};

}  // namespace

TEST_CASE("restore_into brings bytes and scalars back into the objects that are there") {
  const auto image = test::make_image(state(1.5F, 10));
  auto target = state(0, 0);
  const auto w = target.at("w").as<Tensor>();
  const auto list = target.at("list").as<List>();
  const auto node = target.at("node").as<NodePtr>();
  const void* memory = w.storage().data();
  restore_into(image.bytes(), target);
  const auto difference = compare(target, state(1.5F, 10));
  INFO((difference ? difference->describe() : ""));
  CHECK_FALSE(difference);
  CHECK(target.at("w").as<Tensor>().identity() == w.identity());
  CHECK(w.storage().data() == memory);
  CHECK(target.at("list").as<List>().identity() == list.identity());
  CHECK(list[0].as<double>() == 1.5);
  CHECK(target.at("node").as<NodePtr>() == node);
}

TEST_CASE("several threads restore a large state as one does") {
  const auto make = [](std::uint8_t first) {
    Dict tensors;
    for (const std::int64_t bytes : {5, 3000000, 0, 9000001, 2048, 700}) {
      const auto t = Tensor::empty({bytes}, DType::kU8);
      for (std::int64_t i = 0; i < bytes; ++i)
        t.data<std::uint8_t>()[i] = static_cast<std::uint8_t>(first + i * 7 + i / 251);
      tensors.set(std::to_string(bytes), t);
    }
    tensors.set("tied", tensors.at("3000000"));
    return tensors;
  };
  const auto image = test::make_image(make(3));
  for (const unsigned threads : {0U, 1U, 2U, 5U}) {
    INFO(threads << " threads");
    auto target = make(200);
    restore_into(image.bytes(), target, {.copy_threads = threads});
    CHECK_FALSE(compare(target, make(3)));
  }
}

TEST_CASE("a node that cannot change in place is replaced, once for all places it is held in") {
  const auto make = [](int n) {
    const NodePtr fixed = std::make_shared<Fixed>(n);
    return Dict{{"a", fixed}, {"b", fixed}};
  };
  const auto image = test::make_image(make(5));
  auto target = make(0);
  restore_into(image.bytes(), target);
  CHECK(target.at("a").as<NodePtr>()->children()[0].value.as<int>() == 5);
  CHECK(target.at("a").as<NodePtr>() == target.at("b").as<NodePtr>());
}

TEST_CASE("a mismatch touches nothing and names the first differing path") {
  const auto image = test::make_image(state(1.5F, 10));
  const auto refused = [&](const char* path, const char* what, auto&& change) {
    auto target = state(0, 0);
    change(target);
    const Value before = target.clone();
    const auto bytes = target.at("marked").template as<Tensor>().template item<float>();
    INFO(path);
    try {
      restore_into(image.bytes(), target);
      FAIL("not refused");
    } catch (const StructureMismatch& e) {
      CHECK(e.path() == path);
      CHECK_THAT(e.what(), Contains(what));
      CHECK_THAT(e.what(), Contains(" in the image, ") && Contains(" in the program's state dict"));
    }
    CHECK_FALSE(compare(before, target));
    CHECK(target.at("marked").template as<Tensor>().template item<float>() == bytes);
    CHECK(compare_structure(image.bytes(), target)->path == path);
  };
  refused("part", "missing", [](Dict& d) { d.erase("part"); });
  refused("extra", "missing", [](Dict& d) { d.set("extra", 1); });
  refused("w", "shape", [](Dict& d) { d.set("w", Tensor::zeros({3, 4}, DType::kF32)); });
  refused("w", "dtype", [](Dict& d) { d.set("w", Tensor::zeros({4, 3}, DType::kI32)); });
  refused("tied", "sharing", [](Dict& d) { d.set("tied", Tensor::zeros({4, 3}, DType::kF32)); });
  refused("part", "offset", [](Dict& d) { d.set("part", d.at("w").as<Tensor>().narrow(0, 2, 2)); });
  refused("list.1", "length", [](Dict& d) { d.at("list").at(1).set(Tuple{1}); });
  refused("list.1", "kind", [](Dict& d) { d.at("list").at(1).set(List{1, "x"}); });
  refused("list.0", "kind", [](Dict& d) { d.at("list").at(0).set(List{}); });
  refused("marked.%@", "attribute", [](Dict& d) { d.set("marked", d.at("marked").as<Tensor>()); });
  refused("node", "auxiliary", [](Dict& d) {
    d.set("node", std::make_shared<OpaqueNode>(
                      "app.N", std::vector<Node::Child>{{"n", 1}, {"d", Dict{{"k", 1}}}}, 2));
  });
}

TEST_CASE("a mismatch says which side is the program's") {
  const auto image = test::make_image(Dict{{"w", Tensor::zeros({2, 3}, DType::kF32)}});
  Dict state{{"w", Tensor::zeros({3, 2}, DType::kF32)}};
  CHECK_THROWS_WITH(
      restore_into(image.bytes(), state),
      Contains("w: shape: F32[2, 3] in the image, F32[3, 2] in the program's state dict"));
  Dict more{{"w", Tensor::zeros({2, 3}, DType::kF32)}, {"new", 1}};
  CHECK_THROWS_WITH(
      restore_into(image.bytes(), more),
      Contains("new: keys: missing in the image, ") && Contains("in the program's state dict"));
}

TEST_CASE("the order of keys and the kinds of scalars do not matter for restoring") {
  const auto image = test::make_image(Dict{{"a", 1}, {"b", "x"}, {"w", Tensor::scalar(1)}});
  Dict target{{"w", Tensor::scalar(0)}, {"b", nullptr}, {"a", 2.5}};
  restore_into(image.bytes(), target);
  CHECK(target.at("a").as<int>() == 1);
  CHECK(target.at("b").as<std::string>() == "x");
  CHECK(target.at("w").as<Tensor>().item<int>() == 1);
}

TEST_CASE("read-only memory is refused before anything is touched") {
  const float memory = 0;
  const auto image = test::make_image(Dict{{"a", 1}, {"w", Tensor::scalar(1.0F)}});
  const auto storage = Storage::wrap(const_cast<float*>(&memory), 4, nullptr, {.read_only = true});
  Dict target{{"a", 0}, {"w", Tensor::on_storage(storage, DType::kF32, {})}};
  CHECK_THROWS_WITH(restore_into(image.bytes(), target), Contains("w is in read-only memory"));
  CHECK(target.at("a").as<int>() == 0);
}
