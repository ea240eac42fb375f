// What is written can be read: a state dict is refused when it is laid out, or its image decodes.
#include <random>

#include <meshstage/core/tree/compare.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/random_state.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;

namespace {

void check_readable(const Value& state) {
  const auto image = test::make_image(state);
  CHECK_NOTHROW(verify_image(image.bytes()));
  const auto decoded = decode_image(image.bytes(), nullptr);
  CHECK_FALSE(compare(state, decoded));
  CHECK_FALSE(compare_structure(image.bytes(), state));
}

// What is said of a state that is refused: the message, and the path.
std::pair<std::string, std::string> refusal(const Value& state, PlanOptions options = {}) {
  try {
    static_cast<void>(StagingPlan::compile(state, nullptr, std::move(options)));
  } catch (const InvalidArgument& e) {
    return {e.what(), e.path()};
  }
  return {"nothing", ""};
}

Value nested(std::size_t levels) {
  Value value = 1;
  for (; levels > 0; --levels) value = Dict{{"k", value}};
  return value;
}

Value node(std::vector<Node::Child> children, Value auxiliary) {
  return NodePtr(
      std::make_shared<OpaqueNode>("test.Strange", std::move(children), std::move(auxiliary)));
}

}  // namespace

TEST_CASE("what is written can be read: tensors of many dims, complex128 too") {
  for (const std::size_t dims : {63U, 64U, 65U, 100U, 1023U, 1024U}) {
    Shape shape(dims, 1);
    shape[dims / 2] = 3;
    check_readable(Dict{{"f", Tensor::zeros(shape, DType::kF32)},
                        {"c", Tensor::zeros(shape, DType::kC128)},
                        {"view", Tensor::zeros({4, 6}, DType::kF32).expand([&] {
                           Shape to(dims, 1);
                           to[dims - 2] = 4;
                           to[dims - 1] = 6;
                           return to;
                         }())}});
  }
  const auto [what, path] =
      refusal(Dict{{"model", Dict{{"w", Tensor::zeros(Shape(1025, 1), DType::kF32)}}}});
  CHECK(path == "model.w");
  CHECK_THAT(what, contains_text("model.w has 1025 dims") && contains_text("at most 1024"));
}

TEST_CASE("what is written can be read: empty tensors whose other sizes are large") {
  const auto large = std::int64_t{1} << 62U;
  for (const auto& shape :
       {Shape{large, 0}, Shape{0, large}, Shape{large, 0, 1}, Shape{1U << 31U, 1U << 31U, 0},
        Shape{INT64_MAX, 0}, Shape{0, INT64_MAX}, Shape{2, 0, INT64_MAX / 2}}) {
    INFO(to_string(shape));
    for (const auto dtype : {DType::kU8, DType::kF32, DType::kC128})
      check_readable(Dict{{"empty", Tensor::empty(shape, dtype)}, {"w", Tensor::arange<float>(4)}});
  }
}

TEST_CASE("what is written can be read: children of one name, and names of every kind") {
  const auto a = Tensor::arange<float>(4), b = Tensor::arange<double>(3);
  const auto twice = node({{"w", a}, {"w", b}, {"w", List{a.narrow(0, 1, 2)}}}, 1);
  check_readable(Dict{{"n", twice}});
  const auto image = test::make_image(Dict{{"n", twice}});
  const auto index = SafetensorsIndex::parse(image.bytes());
  CHECK(index.find("n.w") != nullptr);  // the first has the path
  CHECK(index.find("n.w")->dtype == "F32");
}

TEST_CASE("what is written can be read: auxiliary data is refused where it is too deep") {
  std::size_t refused = 0, read = 0;
  for (const std::size_t above : {0U, 40U, 90U, 120U, 126U}) {
    for (const std::size_t levels : {1U, 5U, 30U, 50U, 80U, 100U, 126U, 200U, 5'000U}) {
      Value state = node({}, nested(levels));
      std::string expected;
      for (std::size_t i = 0; i < above; ++i) {
        state = Dict{{"a", state}};
        expected += i == 0 ? "a" : ".a";
      }
      INFO(above << " levels above " << levels);
      const auto [what, path] = refusal(state);
      if (what == "nothing") {
        check_readable(state);
        ++read;
        continue;
      }
      ++refused;
      if (levels > 128) continue;  // what copies it refuses that
      CHECK(path == expected);
      CHECK_THAT(what, contains_text("nested too deeply"));
    }
  }
  CHECK(refused > 10);
  CHECK(read > 20);
}

TEST_CASE("what is written can be read: a header over the limit is refused, and at it is read") {
  Dict state;
  for (int i = 0; i < 100; ++i)
    state.set(std::string(130, 'n') + std::to_string(i), Tensor::zeros({1}, DType::kU8));
  const auto used = StagingPlan::compile(state).layout().data_begin - 8;
  const auto [what, path] = refusal(Dict{{"m", state}}, {.max_header_bytes = used / 2});
  CHECK(path.size() == 2 + 132);
  CHECK_THAT(what,
             contains_text("100 tensors") && contains_text("at most " + std::to_string(used / 2)));
  // The headroom goes first.
  std::uint64_t least = used;
  while (refusal(state, {.max_header_bytes = least - 4096}).first == "nothing") least -= 4096;
  CHECK(least < used);
  const auto image = test::make_image(state, {.block_bytes = 4096, .max_header_bytes = least},
                                      test::identity_of_step(85));
  CHECK(image.plan.layout().data_begin - 8 == least);
  CHECK_FALSE(compare(state, decode_image(image.bytes(), nullptr)));
  // A layout before with more headroom does not count.
  const auto roomy = StagingPlan::compile(state);
  const auto again = StagingPlan::compile(state, &roomy, {.max_header_bytes = least});
  CHECK(again.layout().data_begin - 8 == least);
  CHECK_THAT(refusal(state, {.max_header_bytes = kMaxHeaderBytes + 1}).first,
             contains_text("max_header_bytes"));
}

TEST_CASE("what is written can be read: random states, as strange as they come") {
  std::size_t read = 0;
  for (unsigned seed = 0; seed < 3000; ++seed) {
    INFO("seed " << seed);
    std::mt19937 random(seed);
    test::RandomState generator([&](std::size_t n) { return random() % n; });
    const auto state = generator.state();
    const auto [what, path] = refusal(state);
    if (what != "nothing") {
      INFO(what);
      CHECK((what.find("nested too deeply") != std::string::npos ||
             what.find("dims") != std::string::npos || what.find("deeper") != std::string::npos));
      continue;
    }
    check_readable(state);
    ++read;
  }
  CHECK(read > 2500);
}
