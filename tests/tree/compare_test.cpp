#include <cmath>

#include <meshstage/core/tree/compare.hpp>
#include <meshstage/core/tree/node.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;
using What = Difference::What;

namespace {

void check(const Value& a, const Value& b, What what, const std::string& path) {
  const auto d = compare(a, b);
  REQUIRE(d.has_value());
  INFO(d->describe());
  CHECK(d->what == what);
  CHECK(d->path == path);
  CHECK_FALSE(d->left == d->right);
  CHECK(compare(b, a)->what == what);
  CHECK_FALSE(compare(a, a).has_value());
}

Value tree(const Tensor& t) { return Dict{{"m", List{Dict{{"w", t}}}}}; }

}  // namespace

TEST_CASE("compare: value, of a tensor's elements and of scalars, bit for bit") {
  const auto t = Tensor::arange<float>(12).view({3, 4});
  auto other = t.clone();
  other.data<float>()[11] = 12;
  check(tree(t), tree(other), What::kValue, "m.0.w");
  check(tree(t), tree(Tensor::zeros({3, 4}, DType::kF32)), What::kValue, "m.0.w");
  check(Dict{{"a", 1}}, Dict{{"a", 2}}, What::kValue, "a");
  check(Dict{{"a", 1}, {"b", "x"}}, Dict{{"a", 1}, {"b", "y"}}, What::kValue, "b");
  check(0.0, -0.0, What::kValue, "");
  check(tree(Tensor::scalar(0.0F)), tree(Tensor::scalar(-0.0F)), What::kValue, "m.0.w");
}

TEST_CASE("compare: dtype") {
  check(tree(Tensor::zeros({3, 4}, DType::kF32)), tree(Tensor::zeros({3, 4}, DType::kF64)),
        What::kDType, "m.0.w");
  check(tree(Tensor::zeros({3}, DType::kI32)), tree(Tensor::zeros({3}, DType::kU32)), What::kDType,
        "m.0.w");
}

TEST_CASE("compare: shape") {
  const auto t = Tensor::arange<float>(12).view({3, 4});
  check(tree(t), tree(t.view({4, 3})), What::kShape, "m.0.w");
  check(tree(t), tree(t.view({12})), What::kShape, "m.0.w");
  check(tree(Tensor::empty({0}, DType::kF32)), tree(Tensor::empty({0, 1}, DType::kF32)),
        What::kShape, "m.0.w");
}

TEST_CASE("compare: stride") {
  const auto t = Tensor::arange<float>(12).view({3, 4});
  check(tree(t.view({4, 3})), tree(t.transpose(0, 1)), What::kStride, "m.0.w");
  check(tree(Tensor::scalar(1.0F).expand({5})), tree(Tensor::full<float>({5}, 1)), What::kStride,
        "m.0.w");
}

TEST_CASE("compare: offset") {
  const auto t = Tensor::zeros({3, 4}, DType::kF32);
  check(tree(t.narrow(0, 0, 1)), tree(t.narrow(0, 1, 1)), What::kOffset, "m.0.w");
}

TEST_CASE("compare: device") {
  const auto far = Storage::wrap(nullptr, 0, nullptr, {}, {DeviceType::kCuda, 1});
  const auto cpu = tree(Tensor::empty({0}, DType::kF32));
  check(tree(Tensor::on_storage(far, DType::kF32, {0})), cpu, What::kDevice, "m.0.w");
  CHECK_FALSE(compare(tree(Tensor::on_storage(far, DType::kF32, {0})), cpu, {.device = false}));
}

TEST_CASE("compare: attribute, missing or another") {
  const auto t = Tensor::arange<float>(4);
  check(Value(t, Dict{{"n", 1}}), Value(t, Dict{{"n", 2}}), What::kValue, "%@.n");
  check(Value(t, Dict{{"n", t.clone()}}), Value(t, Dict{{"n", t.view({2, 2})}}), What::kShape,
        "%@.n");
  check(Value(t, Dict{{"n", 1}}), Value(t, Dict{{"k", 1}}), What::kKeys, "%@.n");
  check(Value(t, Dict{{"n", 1}}), Value(t), What::kAttribute, "%@");
  check(Dict{{"w", Value(t, Dict{{"n", 1}})}}, Dict{{"w", t}}, What::kAttribute, "w.%@");
}

TEST_CASE("compare: container kind, and that of scalars and nodes") {
  const auto node = [](const char* type, int plain) {
    return std::make_shared<OpaqueNode>(type, std::vector<Node::Child>{}, plain);
  };
  check(List{1}, Tuple{1}, What::kKind, "");
  check(Dict{{"a", List{Value(List{})}}}, Dict{{"a", List{Dict{}}}}, What::kKind, "a.0");
  check(Dict{{"a", 1}}, Dict{{"a", List{1}}}, What::kKind, "a");
  check(Dict{{"a", 1}}, Dict{{"a", 1.0}}, What::kKind, "a");
  check(Dict{{"a", 1}}, Dict{{"a", Tensor::scalar(1)}}, What::kKind, "a");
  check(node("a", 1), node("b", 1), What::kKind, "");
  check(node("a", 1), node("a", 2), What::kAuxiliary, "");
}

TEST_CASE("compare: keys, their order, and lengths") {
  check(Dict{{"a", 1}}, Dict{{"b", 1}}, What::kKeys, "a");
  check(Dict{{"a", 1}}, Dict{{"a", 1}, {"b", 1}}, What::kKeys, "b");
  check(Dict{{"1", 1}}, Dict{{1, 1}}, What::kKeys, "%31");
  check(Dict{{"a", 1}, {"b", 2}}, Dict{{"b", 2}, {"a", 1}}, What::kKeys, "");
  check(List{1}, List{1, 2}, What::kLength, "");
}

TEST_CASE("compare: sharing that only one side has, of storages, tensors and containers") {
  const auto t = Tensor::arange<float>(4);
  check(Dict{{"a", t}, {"b", t.view({4})}}, Dict{{"a", t.clone()}, {"b", t.clone()}},
        What::kSharing, "b");
  check(Dict{{"a", t}, {"b", t}}, Dict{{"a", t}, {"b", t.view({4})}}, What::kSharing, "b");
  const List l{1};
  check(Dict{{"a", l}, {"b", l}}, Dict{{"a", List{1}}, {"b", List{1}}}, What::kSharing, "b");
  const auto d = compare(Dict{{"a", t}, {"b", t.view({4})}}, Dict{{"a", t}, {"b", t.clone()}});
  REQUIRE(d);
  CHECK(d->left == "shares storage with a");
  CHECK(d->right == "is on its own");
  CHECK(d->describe() == "b: sharing: shares storage with a against is on its own");
}

TEST_CASE("compare: the first of several differences, in the order of the first tree") {
  const Dict a{{"x", 1}, {"y", List{1, 2}}, {"z", 3}};
  check(a, Dict{{"x", 1}, {"y", List{1, 7}}, {"z", 8}}, What::kValue, "y.1");
}

TEST_CASE("a NaN equals itself bit for bit") {
  CHECK_FALSE(compare(std::nan("1"), std::nan("1")));
  const auto t = Tensor::full<float>({2}, std::nanf("7"));
  CHECK_FALSE(compare(t, t.clone()));
}

TEST_CASE("options leave differences out") {
  const auto t = Tensor::arange<float>(4);
  CHECK_FALSE(compare(Dict{{"a", 1}}, Dict{{"a", "x"}}, {.values = false}));
  CHECK_FALSE(compare(Dict{{"a", 1}, {"b", 2}}, Dict{{"b", 2}, {"a", 1}}, {.key_order = false}));
  CHECK_FALSE(
      compare(Dict{{"a", t}, {"b", t}}, Dict{{"a", t}, {"b", t.clone()}}, {.sharing = false}));
  CHECK_FALSE(compare(Tensor::arange<float>(8).narrow(0, 0, 4), t));
  CHECK(compare(Tensor::arange<float>(8).narrow(0, 0, 4), t, {.storage_bytes = true})->what ==
        What::kStorage);
  CHECK_FALSE(compare(Value(t, Dict{{"n", 1}}), t, {.attributes = false}));
}
