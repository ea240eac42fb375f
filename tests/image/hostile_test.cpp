// Bytes that nobody staged: whatever they are, CorruptData or a sound state dict, never a crash.
#include <random>

#include "tests/support/borrowing.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using Catch::Matchers::Contains;
using test::copy_of;

namespace {

// Reads every byte that a decoded tree claims to have.
void touch(const Value& value, std::size_t& sum) {
  if (const auto* t = value.get_if<Tensor>()) {
    for (const auto b : t->storage().bytes()) sum += std::to_integer<std::size_t>(b);
    if (t->numel() > 0 && t->numel() < 100000)
      sum += std::to_integer<std::size_t>(t->clone().first_byte()[0]);
  } else if (const auto* d = value.get_if<Dict>()) {
    for (const auto& [key, inner] : *d) touch(inner, sum);
  } else if (const auto* l = value.get_if<List>()) {
    for (const auto& inner : *l) touch(inner, sum);
  } else if (const auto* u = value.get_if<Tuple>()) {
    for (const auto& inner : *u) touch(inner, sum);
  }
}

bool decodes(std::span<const std::byte> bytes) {
  const auto copy = copy_of(bytes);  // so that a read beyond is seen by the sanitizer
  bool decoded = false;
  try {
    std::size_t sum = 0;
    touch(decode_image(copy.bytes(), nullptr), sum);
    decoded = true;
  } catch (const CorruptData&) {
  }
  try {
    static_cast<void>(verify_image(copy.bytes()));
  } catch (const CorruptData&) {
  }
  try {
    const auto info = verify_replica(copy.bytes());
    static_cast<void>(borrowed_parts(copy.bytes(), info));
  } catch (const CorruptData&) {
  }
  return decoded;
}

Dict small_state() {
  const auto w = Tensor::arange<float>(6).view({2, 3});
  return {{"w", w},
          {"t", w.transpose(0, 1)},
          {"l", List{1, "two", Tuple{2.5, Tensor::scalar(std::int64_t{3})}}},
          {"b", Bytes(20)}};
}

}  // namespace

TEST_CASE("an image cut short anywhere is refused") {
  const auto image = test::make_image(small_state());
  REQUIRE(decodes(image.bytes()));
  for (std::size_t n = 0; n < image.bytes().size(); n += n < 1500 ? 1 : 97)
    CHECK_FALSE(decodes(image.bytes().first(n)));
}

TEST_CASE("random damage never crashes the decoders") {
  const bool borrowing = GENERATE(false, true);
  const auto image = borrowing ? test::borrowing_image() : test::make_image(small_state());
  const auto& layout = image.plan.layout();
  std::mt19937_64 random(42);
  std::size_t refused = 0;
  for (int round = 0; round < 4000; ++round) {
    const auto copy = copy_of(image.bytes());
    const auto end = round % 2 == 0 ? std::size_t{900} : copy.nbytes();
    for (std::uint64_t k = 0, n = 1 + random() % 4; k < n; ++k) {
      auto& b = copy.data()[random() % end];
      b = round % 3 == 0 ? static_cast<std::byte>("0123456789[]{},:\""[random() % 17])
                         : static_cast<std::byte>(random());
    }
    if (!decodes(copy.bytes())) ++refused;
  }
  CHECK(refused > 1000);
  CHECK(layout.data_begin == 4096);
}

TEST_CASE("a manifest that contradicts itself is refused with what is wrong") {
  const auto refused = [](const std::string& from, const std::string& to, const char* why) {
    const auto image = test::with_structure(
        test::make_image(small_state()), [&](std::string& json) { test::replace(json, from, to); });
    INFO(from << " -> " << to);
    CHECK_THROWS_AS(decode_image(image.bytes(), nullptr), CorruptData);
    CHECK_THROWS_WITH(decode_image(image.bytes(), nullptr), Contains(why));
  };
  refused("\\\"format\\\":1", "\\\"format\\\":9", "version 9");
  refused("[[0,24],", "[[0,20],", "no entry");
  refused("[[0,24],[64,72]]", "[[0,24],[0,24]]", "same place");
  refused("[0,\\\"F32\\\",[2,3]]", "[5,\\\"F32\\\",[2,3]]", "storage 5 of 2");
  refused("[0,\\\"F32\\\",[2,3]]", "[0,\\\"F32\\\",[2,4]]", "beyond its storage");
  refused("[0,\\\"F32\\\",[2,3]]", "[0,\\\"F99\\\",[2,3]]", "dtype");
  refused("[3,2],[1,3],0]", "[3,2],[1,3],1]", "beyond its storage");
  refused("[3,2],[1,3],0]", "[3,2],[1,9223372036854775807],0]", "beyond 63 bits");
  refused("[3,2],[1,3],0]", "[3,2],[1,-3],0]", "not a number");
  refused("[3,2],[1,3],0]", "[3,2],[1,3.5],0]", "not a number");
  refused("{\\\"t\\\":2}", "{\\\"t\\\":3}", "not there");
  refused("{\\\"t\\\":2}", "{\\\"r\\\":0}", "not complete");
  refused("{\\\"t\\\":2}", "{\\\"r\\\":9}", "not there");
  refused("{\\\"t\\\":2}", "{\\\"q\\\":2}", "unknown kind");
  refused("{\\\"t\\\":2}", "0", "ends within");
  refused("[\\\"t\\\",", "[\\\"w\\\",", "twice");
  refused("[\\\"t\\\",", "[\\\"%\\\",", "path");
  refused("__meshstage__.values", "__meshstage__.valuez", "missing");
  refused("\\\"block_bytes\\\":4096", "\\\"block_bytes\\\":0", "blocks of 0");
  refused("\\\"tree\\\"", "\\\"treee\\\"", "missing");
}

TEST_CASE("a structure nested very deeply is refused, not followed") {
  Value deep = 1;
  for (std::size_t i = 0; i < kMaxTreeDepth; ++i) deep = List{deep};
  CHECK(decodes(test::make_image(deep).bytes()));
  CHECK_THROWS_AS(test::make_image(List{deep}), InvalidArgument);
  // Also where each level is reached by a reference.
  List chain;
  Value last = List{};
  for (std::size_t i = 0; i < 2 * kMaxTreeDepth; ++i) {
    chain.push_back(last);
    last = List{last};
  }
  CHECK_THROWS_WITH(test::make_image(chain), Contains("deeper"));
  const auto image =
      test::with_structure(test::make_image(Dict{{"a", List(std::vector<Value>(1000, Value(1)))}}),
                           [](std::string& json) {
                             const auto at = json.find("{\\\"l\\\":[");
                             REQUIRE(at != std::string::npos);
                             json.replace(at, 1500, std::string(1500, '['));
                           });
  CHECK_THROWS_AS(decode_image(image.bytes(), nullptr), CorruptData);
}

TEST_CASE("somebody else's safetensors file is refused as an image") {
  const std::string json = R"({"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})";
  auto file = Storage::allocate(8 + json.size() + 4);
  const std::uint64_t n = json.size();
  std::memcpy(file.data(), &n, 8);
  std::memcpy(file.data() + 8, json.data(), json.size());
  CHECK_THROWS_WITH(decode_image(file.bytes(), nullptr), Contains("not one of ours"));
  CHECK_THROWS_AS(read_info(file.bytes()), CorruptData);
}
