#include <meshstage/core/tree/compare.hpp>
#include <meshstage/core/tree/fields.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;

namespace {

enum class Mode : std::uint8_t { kTrain = 3, kEvaluate = 200 };

struct Point {
  double x = 0;
  int y = 0;
  bool operator==(const Point&) const = default;
};

// Every kind of member.
struct Everything {
  bool flag = true;
  std::int8_t small = -1;
  std::uint64_t large = 7;
  float real = 0.1F;
  Mode mode = Mode::kEvaluate;
  std::string text = "t";
  Bytes bytes{std::byte{1}};
  List list{1};
  Tuple tuple{2};
  Dict dict{{"k", 3}};
  Tensor tensor = Tensor::scalar(4);
  Value any = "any";
  Point point{0.5, 6};
  std::vector<Point> points{{1, 2}, {3, 4}};
  std::vector<bool> flags{true, false};
  std::array<std::int64_t, 2> pair{5, 6};
  std::optional<std::string> present = "here";
  std::optional<Point> absent;
};

// Const members, and a constructor of its own.
class Frozen {
 public:
  Frozen(std::string a_name, std::vector<double> numbers)
      : name(std::move(a_name)), values(std::move(numbers)) {}
  const std::string name;
  const std::vector<double> values;
};

}  // namespace

template <>
struct meshstage::Fields<Point> {
  static constexpr auto type_name = "test.Point";
  static constexpr auto members = std::tuple(field("x", &Point::x), field("y", &Point::y));
};
template <>
struct meshstage::Fields<Everything> {
  static constexpr auto type_name = "test.Everything";
  static constexpr auto members =
      std::tuple(field("flag", &Everything::flag), field("small", &Everything::small),
                 field("large", &Everything::large), field("real", &Everything::real),
                 field("mode", &Everything::mode), field("text", &Everything::text),
                 field("bytes", &Everything::bytes), field("list", &Everything::list),
                 field("tuple", &Everything::tuple), field("dict", &Everything::dict),
                 field("tensor", &Everything::tensor), field("any", &Everything::any),
                 field("point", &Everything::point), field("points", &Everything::points),
                 field("flags", &Everything::flags), field("pair", &Everything::pair),
                 field("present", &Everything::present), field("absent", &Everything::absent));
};
template <>
struct meshstage::Fields<Frozen> {
  static constexpr auto type_name = "test.Frozen";
  static constexpr auto members =
      std::tuple(field("name", &Frozen::name), field("values", &Frozen::values));
};

TEST_CASE("a struct with fields is a node, and every kind of member comes back") {
  Everything e;
  e.absent = std::nullopt;
  const auto node = struct_node(e);
  CHECK(node->type_name() == "test.Everything");
  const auto children = node->children();
  REQUIRE(children.size() == 18);
  CHECK(children[4].name == "mode");
  CHECK(children[4].value.as<int>() == 200);
  CHECK(children[12].value.kind() == ValueKind::kNode);
  CHECK(children[13].value.kind() == ValueKind::kList);
  CHECK(children[17].value.is_null());
  std::vector<Value> values;
  for (const auto& child : children) values.push_back(child.value);
  const Value rebuilt(node->rebuild(values));
  const auto& back = struct_of<Everything>(rebuilt);
  CHECK_FALSE(compare(rebuilt, Value(node)));
  CHECK(back.real == 0.1F);
  CHECK(back.mode == Mode::kEvaluate);
  CHECK(back.points == e.points);
  CHECK(back.flags == e.flags);
  CHECK(back.pair == e.pair);
  CHECK(back.present == "here");
  CHECK_FALSE(back.absent);
  CHECK(back.tensor.identity() == e.tensor.identity());
  CHECK(back.list.identity() == e.list.identity());
}

TEST_CASE("a struct that can be assigned is, in place; one with const members is rebuilt") {
  const auto point = struct_node(Point{1, 2});
  const auto& seen = point->value();
  CHECK(point->assign({3.0, 4}));
  CHECK(seen == Point{3, 4});
  const auto frozen = struct_node(Frozen("a", {1, 2}));
  CHECK_FALSE(frozen->assign({"b", List{3.0}}));
  CHECK(frozen->value().name == "a");
  const Value rebuilt(frozen->rebuild({"b", List{3.0}}));
  CHECK(struct_of<Frozen>(rebuilt).name == "b");
  CHECK(struct_of<Frozen>(rebuilt).values == std::vector<double>{3});
}

TEST_CASE("members of another kind or number are refused, naming the member") {
  const auto point = struct_node(Point{1, 2});
  CHECK_THROWS_WITH(point->rebuild({3.0, "x"}), contains_text("test.Point.y"));
  CHECK_THROWS_WITH(point->rebuild({3.0}), contains_text("2 members, not 1"));
  CHECK_THROWS_WITH(point->rebuild({3.0, std::int64_t{1} << 40U}), contains_text("test.Point.y"));
  CHECK_THROWS_AS(struct_of<Point>(Value(1)), InvalidArgument);
  CHECK_THROWS_AS(struct_of<Frozen>(Value(point)), InvalidArgument);
  NodeRegistry registry;
  add_struct<Point>(registry);
  using Children = std::vector<Node::Child>;
  const auto made = registry.make("test.Point", Children{{"x", 1.0}, {"y", 2}}, {});
  CHECK(struct_of<Point>(made) == Point{1, 2});
  CHECK_THROWS_AS(registry.make("test.Point", Children{{"x", 1.0}}, {}), CorruptData);
  CHECK_THROWS_AS(registry.make("test.Point", Children{{"y", 2}, {"x", 1.0}}, {}), CorruptData);
  CHECK_THROWS_AS(registry.make("test.Point", Children{{"x", 1.0}, {"y", 2}, {"z", 3}}, {}),
                  CorruptData);
  CHECK_THROWS_AS(registry.make("test.Point", Children{{"x", 1}, {"y", 2}}, {}), CorruptData);
}
