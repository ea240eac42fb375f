// What PyTorch's StateDictStager does, one behaviour after the other, under the same names.
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>

#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/tree/compare.hpp>
#include <meshstage/core/tree/fields.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/memory_kinds.hpp"

using namespace meshstage;

namespace {

const Tensor& tensor(const Value& v, const Key& key) { return v.at(key).as<Tensor>(); }

// What a process of its own reads there, as text: " 00 01 02".
std::string bytes_seen_by_another_process(const SharedLocation& at, std::size_t count) {
  const auto command = "od -An -v -w1 -tx1 -j " + std::to_string(at.offset) + " -N " +
                       std::to_string(count) + " " + at.file + " | tr -d '\\n'";
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(command.c_str(), "r"), ::pclose);
  std::string text;
  for (int c = 0; pipe && (c = std::fgetc(pipe.get())) != EOF;) text += static_cast<char>(c);
  return text;
}

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  std::array<char, 4> part{};
  for (const auto b : bytes) {
    std::snprintf(part.data(), part.size(), " %02x", std::to_integer<unsigned>(b));
    text += part.data();
  }
  return text;
}

struct Holder {
  Tensor part;
  std::string name;
};

// Every bit pattern of a narrow dtype; of a wide one as many, each byte value in each place.
Tensor all_patterns(DType dtype) {
  const auto t = Tensor::empty({1 << 16U}, dtype);
  auto* const bytes = t.storage().data();
  for (std::size_t i = 0; i < (std::size_t{1} << 16U); ++i) {
    for (std::size_t b = 0; b < size_of(dtype); ++b) {
      const auto value = dtype == DType::kBool ? i % 2 : (i >> (8 * (b % 2))) + 41 * (b / 2);
      bytes[i * size_of(dtype) + b] = static_cast<std::byte>(value);
    }
  }
  return t;
}

}  // namespace

template <>
struct meshstage::Fields<Holder> {
  static constexpr auto type_name = "test.Holder";
  static constexpr auto members =
      std::tuple(field("part", &Holder::part), field("name", &Holder::name));
};

MEMORY_KINDS_TEST(views, "views") {
  const auto a = Tensor::arange<float>(12).view({3, 4});
  const auto b = Tensor::arange<std::int64_t>(10);
  const Dict state{{"a", a},
                   {"reshaped", a.view({12})},
                   {"b", b},
                   {"struct", struct_node(Holder{b.narrow(0, 3, 4), "narrowed"})}};
  StateDictStager stager(kind.options());
  const auto staged = stager.stage(state);
  CHECK(stager.cached_storages() == 2);
  CHECK(stager.cached_bytes() == 48 + 80);
  CHECK_FALSE(compare(state, staged));
  CHECK(tensor(staged, "a").storage() == tensor(staged, "reshaped").storage());
  CHECK(tensor(staged, "a").strides() == Strides{4, 1});
  CHECK(tensor(staged, "reshaped").shape() == Shape{12});
  tensor(staged, "a").data<float>()[5] = -1;
  CHECK(tensor(staged, "reshaped").data<float>()[5] == -1);
  CHECK(a.data<float>()[5] == 5);
  const auto& part = struct_of<Holder>(staged.at("struct")).part;
  CHECK(part.storage() == tensor(staged, "b").storage());
  CHECK(part.storage_offset() == 3);
  CHECK(part.shape() == Shape{4});
  tensor(staged, "b").data<std::int64_t>()[3] = -1;
  CHECK(part.data<std::int64_t>()[0] == -1);
  CHECK(b.data<std::int64_t>()[3] == 3);
}

MEMORY_KINDS_TEST(caching, "caching") {
  // The first storage, one in the middle and the last, a large one and one of a byte.
  Dict state{{"w", Tensor::full<float>({100}, 1)},
             {"byte", Tensor::full<std::uint8_t>({1}, 1)},
             {"l", List{Tensor::full<std::int32_t>({300'000}, 1)}},
             {"view", Tensor::full<double>({50}, 1).narrow(0, 20, 5)},
             {"n", 1}};
  const auto tensors = std::array{tensor(state, "w"), tensor(state, "byte"),
                                  state.at("l").at(0).as<Tensor>(), tensor(state, "view")};
  const auto places = [](const Value& staged) {
    return std::array<const void*, 4>{tensor(staged, "w").storage().data(),
                                      tensor(staged, "byte").storage().data(),
                                      staged.at("l").at(0).as<Tensor>().storage().data(),
                                      tensor(staged, "view").storage().data()};
  };
  StateDictStager stager(kind.options());
  const auto first = stager.stage(state);
  const auto memory = places(first);
  for (int round = 2; round <= 9; ++round) {
    // One of them changes, or all, or none.
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if (round % 6 != static_cast<int>(i) && round % 6 != 4) continue;
      const auto bytes = tensors.at(i).storage().bytes();
      std::fill(bytes.begin(), bytes.end(), static_cast<std::byte>(round));
    }
    state.set("n", round);
    const auto again = stager.stage(state);
    CHECK_FALSE(compare(state, again));
    CHECK(places(again) == memory);
    // Earlier results show the new bytes, and keep their own scalars.
    state.set("n", 1);
    CHECK_FALSE(compare(state, first));
    CHECK(again.at("n").as<int>() == round);
    CHECK(stager.cached_storages() == 4);
    CHECK(stager.plans() == 1);
  }
}

MEMORY_KINDS_TEST(tensor_attrs,
                  "tensor_attrs, any values attached to a tensor arrive with it, tensors too") {
  const auto t = Tensor::arange<float>(4);
  const auto own = Tensor::scalar(7);
  const Dict state{{"t", Value(t, Dict{{"note", "n"},
                                       {"scale", 0.5},
                                       {"more", t.narrow(0, 1, 2)},
                                       {"own", own},
                                       {"deep", List{Value(t, Dict{{"of", 1}})}}})},
                   {"same, without", t}};
  StateDictStager stager(kind.options());
  for (int round = 0; round < 3; ++round) {
    t.data<float>()[1] = static_cast<float>(10 + round);
    own.data<int>()[0] = 7 + round;
    const auto staged = round == 1 ? stager.stage_async(state).get() : stager.stage(state);
    CHECK_FALSE(compare(state, staged));
    const auto& attributes = *staged.at("t")->attributes();
    CHECK(attributes.at("note").as<std::string>() == "n");
    CHECK(attributes.at("more").as<Tensor>().storage() == tensor(staged, "t").storage());
    CHECK(attributes.at("own").as<Tensor>().item<int>() == 7 + round);
    CHECK(attributes.at("own").as<Tensor>().is_pinned() == kind.pin());
    CHECK(attributes.at("own").as<Tensor>().is_shared() == kind.share());
    CHECK(attributes.identity() != state.at("t")->attributes()->identity());
    CHECK(staged.at("same, without")->attributes() == nullptr);
  }
  CHECK(stager.plans() == 1);
}

TEST_CASE("different_dtypes: every dtype arrives bit for bit, NaN payloads and negative zero too") {
  Dict state;
  for (std::size_t i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    state.set(std::string(to_string(dtype)), all_patterns(dtype));
  }
  for (const auto* name : {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F8_E4M3",
                           "F8_E5M2", "F16", "BF16", "F32", "F64", "C64", "C128"}) {
    INFO(name);
    CHECK(state.contains(name));
  }
  const auto bits = [](std::uint32_t u) { return std::bit_cast<float>(u); };
  state.set("special F32", Tensor::from_vector<float>({-0.0F, bits(0x7fc00001), bits(0xffa5a5a5),
                                                       bits(0x7f800001), bits(0x00000001)}));
  state.set("special F64",
            Tensor::from_vector<double>({-0.0, std::bit_cast<double>(0xfff0000000000001ULL),
                                         std::numeric_limits<double>::denorm_min()}));
  state.set("special C64",
            Tensor::from_vector<std::complex<float>>({{-0.0F, bits(0xffa5a5a5)}, {1, -0.0F}}));
  StateDictStager stager;
  const auto staged = stager.stage(state);
  for (const auto& [name, value] : state) {
    INFO(name.string());
    const auto& from = value.as<Tensor>();
    const auto& to = tensor(staged, name);
    CHECK(to.dtype() == from.dtype());
    CHECK(std::memcmp(to.first_byte(), from.first_byte(), from.nbytes()) == 0);
  }
  CHECK_FALSE(compare(state, staged));
}

MEMORY_KINDS_TEST(empty_tensors, "empty_tensors") {
  const Dict state{{"one", Tensor::empty({0}, DType::kF16)},
                   {"two", Tensor::empty({2, 0}, DType::kI8)},
                   {"three", Tensor::empty({0, 1, 3}, DType::kC128)},
                   {"full", Tensor::arange<float>(5000)},
                   {"empty view", Tensor::arange<float>(5).narrow(0, 3, 0)},
                   {"scalar", Tensor::scalar(1.5F)}};
  StateDictStager stager(kind.options());
  const auto staged = stager.stage(state);
  CHECK_FALSE(compare(state, staged));
  CHECK(stager.cached_storages() == 6);
  CHECK(tensor(staged, "two").shape() == Shape{2, 0});
  CHECK(tensor(staged, "three").dtype() == DType::kC128);
  CHECK(tensor(staged, "scalar").dim() == 0);
  CHECK_FALSE(tensor(staged, "one").is_pinned());
  CHECK_FALSE(compare(Dict{}, stager.stage(Dict{})));
}

TEST_CASE(
    "complex_storage_sharing: views of views share after, and a write to the base shows in all") {
  const auto base = Tensor::arange<std::int32_t>(60).view({6, 10});
  const auto rows = base.narrow(0, 2, 3);
  const Dict state{{"base", base},
                   {"flat", base.view({60})},
                   {"rows", rows},
                   {"block", base.narrow(0, 1, 4).narrow(1, 3, 5)},
                   {"slice of view", rows.slice(1, 1, 9, 3)},
                   {"row of view", rows.select(0, 1)},
                   {"other", base.clone()}};
  StateDictStager stager;
  const auto staged = stager.stage(state);
  CHECK(stager.cached_storages() == 2);
  CHECK_FALSE(compare(state, staged));
  const auto& changed = tensor(staged, "base");
  for (std::int64_t i = 0; i < 60; ++i) changed.data<std::int32_t>()[i] += 1000;
  for (const auto& [name, value] : state) {
    auto expected = value.as<Tensor>().to_vector<std::int32_t>();
    if (name.string() != "other") {
      CHECK(tensor(staged, name).storage() == changed.storage());
      for (auto& e : expected) e += 1000;
    }
    CHECK(tensor(staged, name).to_vector<std::int32_t>() == expected);
  }
}

TEST_CASE("cpu_storage_independence: CPU sources are really copied") {
  const Dict state{{"w", Tensor::full<float>({8}, 1)}, {"l", List{1}}};
  StateDictStager stager;
  const auto staged = stager.stage(state);
  CHECK(tensor(staged, "w").storage().data() != tensor(state, "w").storage().data());
  tensor(state, "w").data<float>()[0] = 5;
  CHECK(tensor(staged, "w").data<float>()[0] == 1);
  tensor(staged, "w").data<float>()[1] = 6;
  CHECK(tensor(state, "w").data<float>()[1] == 1);
  CHECK(staged.at("l").as<List>().identity() != state.at("l").as<List>().identity());
}

MEMORY_KINDS_TEST(staged_again, "cpu_storage_independence, of what was staged before") {
  // The stager's own memory as a source: it must not be read while it is being written.
  const Dict state{{"a", Tensor::full<std::int32_t>({5000}, 1)},
                   {"b", Tensor::full<std::int32_t>({5000}, 2)}};
  StateDictStager stager(kind.options());
  const auto staged = stager.stage(state);
  const Dict swapped{{"a", tensor(staged, "b")}, {"b", tensor(staged, "a")}};
  const Dict expected{{"a", tensor(state, "b").clone()}, {"b", tensor(state, "a").clone()}};
  const auto again = stager.stage(swapped);
  CHECK_FALSE(compare(expected, again));
  CHECK_FALSE(compare(expected, stager.stage(swapped)));
  CHECK_FALSE(compare(state, staged));
  const Dict rotated{{"a", tensor(again, "b")}, {"c", tensor(again, "b").narrow(0, 1, 9)}};
  const auto once_more = stager.stage_async(rotated).get();
  CHECK_FALSE(compare(rotated, once_more));
  CHECK_FALSE(compare(expected, again));
  CHECK(tensor(once_more, "a").data<std::int32_t>()[4999] == 1);
  // And with sources elsewhere its memory is used again.
  const void* const memory = tensor(stager.stage(state), "a").storage().data();
  CHECK(tensor(stager.stage(state), "a").storage().data() == memory);
}

MEMORY_KINDS_TEST(tensor_pinned_and_shared, "tensor_pinned_and_shared") {
  const Dict state{{"w", Tensor::arange<std::int32_t>(3000)},
                   {"view", Tensor::arange<std::uint8_t>(100).narrow(0, 7, 20)},
                   {"small", Tensor::scalar(3.0F)}};
  CHECK_FALSE(tensor(state, "w").is_pinned());
  CHECK_FALSE(tensor(state, "w").is_shared());
  StateDictStager stager(kind.options());
  const auto staged = stager.stage(state);
  CHECK_FALSE(compare(state, staged));
  for (const auto& [name, value] : state) {
    const auto& t = tensor(staged, name);
    INFO(name.string());
    CHECK(t.is_pinned() == kind.pin());
    CHECK(t.storage().is_pinned() == kind.pin());
    CHECK(kind.pinner.locks(t.storage().bytes()) == kind.pin());
    CHECK(t.is_shared() == kind.share());
    CHECK(t.storage().is_shared() == kind.share());
    REQUIRE(t.storage().location().has_value() == kind.share());
    if (!kind.share()) continue;
    CHECK(bytes_seen_by_another_process(*t.storage().location(), t.storage().nbytes()) ==
          hex(value.as<Tensor>().storage().bytes()));
  }
  // The next staging shows there too.
  tensor(state, "w").data<std::int32_t>()[0] = 0x01020304;
  CHECK_FALSE(compare(state, stager.stage(state)));
  if (kind.share()) {
    CHECK(bytes_seen_by_another_process(*tensor(staged, "w").storage().location(), 4) ==
          " 04 03 02 01");
  }
}

TEST_CASE("containers: one object held in two places is one object after") {
  const auto t = Tensor::arange<float>(4);
  const List list{1, t};
  const Dict dict{{"x", 1.5}};
  const Dict state{{"t", t},    {"same", t},          {"x", list}, {"y", Tuple{list, dict}},
                   {"z", dict}, {"equal", List{1, t}}};
  StateDictStager stager;
  const auto staged = stager.stage(state);
  CHECK_FALSE(compare(state, staged));
  CHECK(tensor(staged, "t").identity() == tensor(staged, "same").identity());
  CHECK(staged.at("x").as<List>().identity() == staged.at("y").at(0).as<List>().identity());
  CHECK(staged.at("z").as<Dict>().identity() == staged.at("y").at(1).as<Dict>().identity());
  CHECK(staged.at("x").as<List>().identity() != staged.at("equal").as<List>().identity());
}

TEST_CASE("containers: key order, integer keys, tuples and lists arrive as they are") {
  const Dict state{{"z", 1}, {"a", Tuple{1, List{2}}}, {7, "seven"}, {"7", List{Tuple{}}}};
  StateDictStager stager;
  const auto staged = stager.stage(state);
  CHECK_FALSE(compare(state, staged));
  std::vector<Key> keys;
  for (const auto& [key, value] : staged.as<Dict>()) keys.push_back(key);
  CHECK(keys == std::vector<Key>{"z", "a", 7, "7"});
  CHECK(staged.at("a").kind() == ValueKind::kTuple);
  CHECK(staged.at("a").at(1).kind() == ValueKind::kList);
  CHECK(staged.at(7).as<std::string>() == "seven");
}

TEST_CASE("containers: a cycle is refused with its path, and the stager goes on") {
  Dict state{{"a", List{Dict{{"b", 1}}}}};
  StateDictStager stager;
  const auto staged = stager.stage(state);
  auto inner = state.at("a").at(0).as<Dict>();
  inner.set("b", state.at("a").value());
  try {
    static_cast<void>(stager.stage(state));
    FAIL("a cycle was staged");
  } catch (const InvalidArgument& e) {
    CHECK(e.path() == "a.0.b");
    CHECK_THAT(e.what(), contains_text("cycle"));
  }
  inner.set("b", 1);
  CHECK_FALSE(compare(state, stager.stage(state)));
}
