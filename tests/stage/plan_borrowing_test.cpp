// Where storages lie that other ranks have too.
#include "tests/support/borrowing.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;

namespace {

/// Names by offset, those without bytes left out.
std::vector<std::string> order(const ImageLayout& layout) {
  std::vector<std::string> names;
  for (const auto& s : layout.segments) {
    if (s.bytes > 0) names.push_back(s.name);
  }
  return names;
}

std::vector<std::string> names_of(const ImageLayout& layout, const LoanSegments& part) {
  std::vector<std::string> names;
  for (const auto i : part.segments) names.push_back(layout.segments.at(i).name);
  return names;
}

StagingPlan compile(const Dict& state, std::vector<LoanNames> borrowed,
                    const StagingPlan* previous = nullptr) {
  return StagingPlan::compile(state, previous,
                              {.block_bytes = 4096, .borrowed = std::move(borrowed)});
}

using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("borrowed storages come first, by rank and name, in whole blocks; the others behind") {
  const auto state = test::borrowing_state();
  const auto plan = compile(state, test::borrowed_names());
  const auto& layout = plan.layout();
  CHECK(order(layout) == Names{"both.a", "both.b", "last", "own", "small"});
  CHECK(layout.borrowed_bytes == 20480);
  CHECK(layout.segments[1].offset == layout.data_begin);  // behind the empty one
  CHECK(layout.segments[4].offset == layout.data_begin + 20480);
  for (const auto& s : layout.segments) CHECK(s.offset % 64 == 0);
  REQUIRE(layout.borrowed.size() == 2);
  CHECK(layout.borrowed[0].rank == 0);
  CHECK(names_of(layout, layout.borrowed[0]) == Names{"both.a", "both.b"});
  CHECK(layout.borrowed[1].rank == 3);
  CHECK(names_of(layout, layout.borrowed[1]) == Names{"last"});

  const auto image = test::borrowing_image();
  CHECK(image.info.borrowed_bytes == 20480);
  CHECK(verify_image(image.bytes()) == image.info);
  CHECK_FALSE(compare(state, decode_image(image.bytes(), nullptr)));
  // The gap between the last borrowed storage and the next block is zeros, and an entry.
  const auto gap = image.bytes().subspan(layout.data_begin + 17344, 20480 - 17344);
  for (const auto b : gap) REQUIRE(b == std::byte{0});
}

TEST_CASE("what fills no block is not borrowed, and the layout is as ever") {
  const auto state = test::borrowing_state();
  const auto plain = test::make_image(state, 1 << 20);
  const auto image =
      test::make_image(state, 1 << 20, 85, test::borrowed_names());  // 17288 bytes of 1 MiB
  CHECK(image.plan.layout().borrowed.empty());
  CHECK(image.info == plain.info);
  REQUIRE(image.bytes().size() == plain.bytes().size());
  CHECK(std::memcmp(image.bytes().data(), plain.bytes().data(), plain.bytes().size()) == 0);
  // A block exactly is enough.
  CHECK(compile(state, {{3, {"last"}}}).layout().borrowed_bytes == 4096);
  CHECK(compile(state, {{3, {"own"}}}).layout().borrowed_bytes == 8192);
}

TEST_CASE("storages that are too small, or not there, or another rank's already, are ignored") {
  const auto state = test::borrowing_state();
  CHECK(compile(state, {{0, {"small", "none", "missing", "step", ""}}}).layout().borrowed.empty());
  const auto plan = compile(
      state, {{3, {"both.a", "last", "last"}}, {1, {"both.b", "both.a"}}, {3, {"own", "both.b"}}});
  const auto& layout = plan.layout();
  REQUIRE(layout.borrowed.size() == 2);
  CHECK(layout.borrowed[0].rank == 1);
  CHECK(names_of(layout, layout.borrowed[0]) == Names{"both.a", "both.b"});
  CHECK(layout.borrowed[1].rank == 3);
  CHECK(names_of(layout, layout.borrowed[1]) == Names{"last", "own"});
  CHECK(order(layout) == Names{"both.a", "both.b", "last", "own", "small"});
  auto smaller = state;
  smaller.set("last", test::bytes_tensor(4095, 4));
  CHECK(compile(smaller, {{3, {"last", "own"}}}).layout().borrowed[0].segments.size() == 1);
  CHECK_THROWS_AS(compile(state, {{-1, {"last"}}}), InvalidArgument);
}

TEST_CASE(
    "other borrowed lists, and any change of structure while borrowing, lay everything out anew") {
  auto state = test::borrowing_state();
  const auto fresh = [&](std::vector<LoanNames> borrowed) {
    return compile(state, std::move(borrowed)).layout().manifest;
  };
  const auto plain = compile(state, {});
  const auto borrowing = compile(state, test::borrowed_names(), &plain);
  CHECK(borrowing.layout().manifest == fresh(test::borrowed_names()));
  const std::vector<LoanNames> less{{3, {"last"}}};
  CHECK(compile(state, less, &borrowing).layout().manifest == fresh(less));
  CHECK(compile(state, {}, &borrowing).layout().manifest == fresh({}));
  state.erase("own");
  CHECK(compile(state, test::borrowed_names(), &borrowing).layout().manifest ==
        fresh(test::borrowed_names()));
  // Nothing left to borrow: no gap stays behind, however small beside the rest.
  state.set("own", test::bytes_tensor(1 << 20, 1));
  const auto large = compile(state, test::borrowed_names());
  state.erase("both");
  state.erase("last");
  const auto last = compile(state, test::borrowed_names(), &large);
  CHECK(last.layout().borrowed_bytes == 0);
  CHECK(last.layout().manifest == fresh({}));
}

TEST_CASE("storages on pages of their own can be borrowed") {
  const auto state = test::borrowing_state();
  const auto plan = StagingPlan::compile(
      state, nullptr,
      {.block_bytes = 4096, .own_pages_from = 5000, .borrowed = {{0, {"both.a", "both.b"}}}});
  CHECK(plan.layout().borrowed_bytes == 16384);
  for (const auto& s : plan.layout().segments) {
    if (s.bytes >= 5000) CHECK(s.offset % 4096 == 0);
  }
}

TEST_CASE(
    "an image that would borrow from itself, or from a rank that is not there, is not sealed") {
  const auto image = test::borrowing_image();
  const auto sealed_as = [&](int rank, int world) {
    Watermark done;
    image.plan.write_manifest(image.bytes());
    image.plan.copy(test::borrowing_state(), image.bytes(), done);
    auto identity = image.info.identity;
    identity.rank = rank;
    identity.world_size = world;
    return image.plan.seal(identity, image.bytes(), done);
  };
  CHECK_THROWS_AS(sealed_as(0, 4), InvalidArgument);
  CHECK_THROWS_AS(sealed_as(2, 3), InvalidArgument);
  CHECK(sealed_as(2, 4) == image.info);
}
