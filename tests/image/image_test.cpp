#include <cmath>

#include <meshstage/core/image/blocks.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;
using Catch::Matchers::Contains;

namespace {

// Everything an image can hold, with sharing of every kind.
Dict full_state() {
  const auto base = Tensor::arange<float>(60).view({6, 10});
  const List shared{1, "two"};
  const auto cell = Storage::allocate(64);
  std::memset(cell.data(), 7, 64);
  return {
      {"model", Dict{{"wte", base},
                     {"head", base},
                     {"view", base.view({60})},
                     {"narrowed", base.narrow(0, 2, 2)},
                     {"slice", base.slice(0, 1, 5).slice(1, 0, 10, 3)},
                     {"turned", base.transpose(0, 1)},
                     {"repeated", base.select(0, 0).expand({3, 10})},
                     {"overlapping", base.as_strided({5, 4}, {2, 1}, 3)},
                     {"ends inside", Tensor::on_storage(cell, DType::kI16, {3}, {2}, 1)}}},
      {"empty", List{Tensor::empty({0}, DType::kF32), Tensor::empty({2, 0}, DType::kI8),
                     Tensor::empty({1, 0, 3}, DType::kBF16)}},
      {"scalar", Tensor::scalar(2.5)},
      {"attributes", Value(Tensor::arange<std::int32_t>(3),
                           Dict{{"note", "kept"}, {"tensor", base.narrow(0, 0, 1)}})},
      {"values", Tuple{nullptr, true, false, -7, INT64_MIN, -0.0, std::nan("5"), "text \xFF\0z",
                       Bytes(300, std::byte{9}), "", Bytes{}}},
      {"twice", Tuple{shared, Dict{{"again", shared}}}},
      {7, "an integer key"},
      {"7", "a string key"},
      {"a.b%\n\xFF", Tensor::scalar(std::uint8_t{1})},
      {"__metadata__", Tensor::scalar(std::uint8_t{2})},
      {"node",
       std::make_shared<OpaqueNode>(
           "app.Thing", std::vector<Node::Child>{{"x", base}, {"n", 5}},
           Dict{{"dims", Tuple{1, 2.5, "s.t", true, nullptr, Bytes{std::byte{1}}}}, {3, List{}}})},
  };
}

void check_equal(const Value& a, const Value& b) {
  const auto difference = compare(a, b);
  INFO((difference ? difference->describe() : ""));
  CHECK_FALSE(difference.has_value());
}

}  // namespace

TEST_CASE("a state dict comes back from its image as it was, sharing and all") {
  const auto state = full_state();
  const auto image = test::make_image(state);
  const auto back = decode_image(image.bytes(), nullptr);
  check_equal(state, back);
  CHECK(compare(state, back, {.values = false, .storage_bytes = true}) == std::nullopt);
  // Each storage once: 240 + 64 + 8 + 12 + 1 + 1 bytes.
  CHECK(image.plan.layout().storage_bytes == 326);
  // A write to one view shows in all.
  const auto writable = decode_image(image.bytes(), nullptr, {}, {});
  writable.at("model").at("wte").as<Tensor>().data<float>()[20] = -1;
  CHECK(writable.at("model").at("narrowed").as<Tensor>().data<float>()[0] == -1);
  CHECK(writable.at("node").as<NodePtr>()->children()[0].value.as<Tensor>().data<float>()[20] ==
        -1);
}

TEST_CASE("sharing survives a copy of the bytes, and the copy keeps itself alive") {
  const auto state = full_state();
  Value back;
  std::weak_ptr<const void> watched;
  {
    const auto image = test::make_image(state);
    const auto wire = std::make_shared<Storage>(Storage::allocate(image.bytes().size()));
    std::memcpy(wire->data(), image.bytes().data(), image.bytes().size());
    back = decode_image(wire->bytes(), wire);
    watched = wire;
  }
  CHECK_FALSE(watched.expired());
  check_equal(state, back);
  back = Value();
  CHECK(watched.expired());
}

TEST_CASE(
    "different_dtypes: every dtype comes back bit for bit, NaN payloads and negative zero too") {
  Dict state;
  for (std::size_t i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    const auto t = Tensor::empty({3, 5}, dtype);
    // Every bit pattern that a byte can have, so signalling NaNs and negative zeros among them.
    for (std::size_t k = 0; k < t.nbytes(); ++k)
      t.first_byte()[k] = static_cast<std::byte>(dtype == DType::kBool ? k % 2 : k * 37 + i);
    state.set(std::string(to_string(dtype)), List{t, t.transpose(0, 1), Tensor::empty({0}, dtype)});
  }
  state.set("nan", Tensor::from_vector<std::uint32_t>({0x7F800001U, 0xFFC00000U, 0x80000000U}));
  const auto image = test::make_image(state);
  check_equal(state, decode_image(image.bytes(), nullptr));
}

TEST_CASE("the identity is in the image, and read without the manifest") {
  const auto image = test::make_image(Dict{{"a", 1}});
  const auto info = read_info(image.bytes());
  CHECK(info == image.info);
  CHECK(info.identity == test::identity_of_step(85));
  CHECK(info.manifest_bytes == image.plan.layout().data_begin);
  CHECK(info.image_bytes == image.bytes().size());
  CHECK(verify_image(image.bytes()) == info);
}

TEST_CASE("changed scalars and bytes of tensors leave the manifest's digest as it was") {
  Dict state{{"step", 1}, {"lr", 0.1}, {"name", "x"}, {"w", Tensor::zeros({100}, DType::kF32)}};
  const auto before = test::make_image(state);
  state.set("step", 1000000);
  state.set("lr", nullptr);
  state.set("name", "a longer name");
  state.at("w").as<Tensor>().data<float>()[5] = 3;
  REQUIRE(before.plan.matches(state));
  const auto after = test::make_image(state, 4096, 90);
  CHECK(before.info.manifest_digest == after.info.manifest_digest);
  CHECK_FALSE(before.info.image_digest == after.info.image_digest);
  state.set("more", 1);
  CHECK_FALSE(test::make_image(state).info.manifest_digest == before.info.manifest_digest);
}

TEST_CASE("a flipped byte anywhere is noticed, and where it is a tensor's the tensor is named") {
  const auto image = test::make_image(Dict{{"first", Tensor::zeros({4096}, DType::kU8)},
                                           {"second", Tensor::full<float>({1024}, 1)},
                                           {"step", 7}});
  const auto& layout = image.plan.layout();
  const auto flipped = [&](std::size_t at) -> std::string {
    image.bytes()[at] ^= std::byte{0x10};
    std::string message, path;
    try {
      verify_image(image.bytes());
    } catch (const CorruptData& e) {
      message = e.what();
      path = e.path();
      if (at >= layout.data_begin && at < layout.trailer_begin) {
        CHECK(e.rank() == 2);
        CHECK(e.step() == 85U);
        CHECK_THAT(message, Contains("rank 2") && Contains("step 85"));
      }
    }
    image.bytes()[at] ^= std::byte{0x10};
    INFO("byte " << at);
    CHECK_FALSE(message.empty());
    return path;
  };
  for (std::size_t at = 0; at < image.bytes().size(); at += 7) flipped(at);
  for (std::size_t at = layout.trailer_begin; at < image.bytes().size(); ++at) flipped(at);
  CHECK(flipped(layout.segments[0].offset + 17) == "first");
  CHECK(flipped(layout.segments[1].offset + 4095) == "second");
  CHECK(verify_image(image.bytes()) == image.info);
}

TEST_CASE("blocks are digested in the order they arrive in") {
  const auto image = test::make_image(Dict{{"w", Tensor::arange<float>(9000)}});
  const auto& layout = image.plan.layout();
  BlockDigests digests(layout.block_bytes, layout.digested_bytes());
  REQUIRE(digests.block_count() == 9);
  CHECK_THROWS_AS(check_blocks(image.bytes(), digests), InvalidArgument);
  const auto block = [&](std::size_t i) {
    return image.bytes().subspan(layout.data_begin + i * layout.block_bytes, digests.block_size(i));
  };
  for (std::size_t i = digests.block_count(); i-- > 0;) digests.add(i, block(i));
  CHECK(digests.complete());
  CHECK(check_blocks(image.bytes(), digests) == image.info);
  CHECK_THROWS_AS(digests.add(9, block(0)), InvalidArgument);
  CHECK_THROWS_AS(digests.add(0, block(8)), InvalidArgument);
  std::vector<std::byte> wrong(block(3).begin(), block(3).end());
  wrong[5] ^= std::byte{1};
  digests.add(3, wrong);
  CHECK_THROWS_WITH(check_blocks(image.bytes(), digests), Contains("block 3") && Contains("w"));
}

TEST_CASE("an unknown node keeps its bytes through decoding and encoding") {
  const auto state = full_state();
  const auto image = test::make_image(state);
  const auto again = test::make_image(decode_image(image.bytes(), nullptr));
  CHECK(again.info == image.info);
  NodeRegistry registry;
  int made = 0;
  registry.add("app.Thing", [&](std::vector<Node::Child> children, const Value& auxiliary) {
    ++made;
    CHECK(auxiliary.at("dims").at(2).as<std::string>() == "s.t");
    return std::make_shared<OpaqueNode>("app.Thing", std::move(children), auxiliary);
  });
  check_equal(state, decode_image(image.bytes(), nullptr, registry));
  CHECK(made == 1);
}

TEST_CASE("any value can be the root") {
  for (const Value& root :
       {Value(Tensor::arange<float>(3)), Value(5), Value(), Value(List{}), Value(Dict{})}) {
    check_equal(root, decode_image(test::make_image(root).bytes(), nullptr));
  }
}

TEST_CASE("the gpt2 state keeps its tied head and stores it once") {
  const auto state = test::gpt2_state(131, 2, 16, 32);
  const auto image = test::make_image(state);
  const auto back = decode_image(image.bytes(), nullptr);
  CHECK(back.at("model").at("lm_head.weight").as<Tensor>().identity() ==
        back.at("model").at("wte.weight").as<Tensor>().identity());
  check_equal(state, back);
  for (const auto& segment : image.plan.layout().segments)
    CHECK_THAT(segment.name, !Contains("lm_head"));
}
