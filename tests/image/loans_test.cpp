// What the trailer says an image borrows and lends.
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/replica.hpp>

#include "tests/support/borrowing.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using Catch::Matchers::Contains;

namespace {

const std::vector<std::string> kBoth{"both.a", "both.b"};

/// Step 85 of a rank of 4.
test::TestImage image_of(int rank, const Dict& state, const PlanOptions& options) {
  auto identity = test::identity_of_step(85);
  identity.rank = rank;
  return test::make_image(state, options, identity);
}

/// Rank 0's, who has "both" in another place, in larger blocks.
test::TestImage first_rank(std::vector<LoanNames> lends, const Dict& others) {
  const Dict state{{"more", test::bytes_tensor(700, 9)}, {"both", others.at("both")}};
  return image_of(0, state, {.block_bytes = 8192, .lent = std::move(lends)});
}

Digest digest_of(const test::TestImage& image, const std::vector<std::string>& names) {
  std::vector<ImageRange> ranges;
  for (const auto& range : find_ranges(image.bytes(), names)) ranges.push_back(range.value());
  return digest_ranges(image.bytes(), ranges);
}

/// Where the trailer's loans begin in it.
std::size_t loans_at(const test::TestImage& image) {
  const auto digested = image.plan.layout().digested_bytes();
  return 192 + 8 * ((digested + image.info.block_bytes - 1) / image.info.block_bytes);
}

std::uint32_t trailer_version(const test::TestImage& image) {
  std::uint32_t version = 0;
  std::memcpy(&version, image.bytes().data() + image.plan.layout().trailer_begin + 8, 4);
  return version;
}

bool same_bytes(const test::TestImage& a, const test::TestImage& b) {
  return a.bytes().size() == b.bytes().size() &&
         std::memcmp(a.bytes().data(), b.bytes().data(), a.bytes().size()) == 0;
}

}  // namespace

TEST_CASE("borrower and lender say the same digest of what is borrowed") {
  const auto state = test::borrowing_state();
  // The names in any order: it is by name that both go.
  const auto owner = image_of(
      2, state, {.block_bytes = 4096, .borrowed = {{3, {"last"}}, {0, {"both.b", "both.a"}}}});
  const auto first = first_rank({{2, {"both.b", "both.a"}}}, state);
  const auto last =
      image_of(3, {{"last", state.at("last")}}, {.block_bytes = 4096, .lent = {{2, {"last"}}}});
  REQUIRE(find_ranges(owner.bytes(), kBoth) != find_ranges(first.bytes(), kBoth));

  CHECK(owner.info.loans == 2);
  const auto loans = read_loans(owner.bytes());
  CHECK(loans == Loans{{{0, digest_of(owner, kBoth)}, {3, digest_of(owner, {"last"})}}, {}});
  CHECK(read_replica_loans(test::replica_of(owner).bytes()) == loans);
  CHECK(read_loans(first.bytes()) == Loans{{}, {{2, loans.borrowed[0].digest}}});
  CHECK(read_loans(last.bytes()) == Loans{{}, {{2, loans.borrowed[1].digest}}});

  auto other = test::borrowing_state();
  other.at("both").at("b").as<Tensor>().data<std::uint8_t>()[8191] ^= 1U;
  const auto differs = read_loans(first_rank({{2, kBoth}}, other).bytes());
  CHECK(differs.lent.at(0).rank == 2);
  CHECK(differs.lent.at(0).digest != loans.borrowed[0].digest);
}

TEST_CASE("an image that only lends is its own replica, and of version 2") {
  const auto state = test::borrowing_state();
  const auto image = first_rank({{2, kBoth}}, state);
  CHECK(image.info.borrowed_bytes == 0);
  CHECK(image.info.loans == 1);
  CHECK(trailer_version(image) == 2);
  const std::string_view manifest(reinterpret_cast<const char*>(image.bytes().data()),
                                  image.info.manifest_bytes);
  CHECK(manifest.find(R"(\"format\":1,)") != std::string_view::npos);
  CHECK(verify_image(image.bytes()) == image.info);
  CHECK(verify_replica(image.bytes()) == image.info);
  CHECK(borrowed_parts(image.bytes(), image.info).empty());
  CHECK(read_replica_loans(image.bytes()) == read_loans(image.bytes()));
  CHECK(image.info.replica_bytes() == image.bytes().size());

  // The loan is all that it has more than the image without.
  const auto plain = first_rank({}, state);
  CHECK(plain.info.loans == 0);
  CHECK(trailer_version(plain) == 1);
  CHECK(read_loans(plain.bytes()) == Loans{});
  const auto trailer = plain.plan.layout().trailer_begin;
  CHECK(image.plan.layout().trailer_begin == trailer);
  CHECK(image.bytes().size() == plain.bytes().size() + 24);
}

TEST_CASE("one storage may complete several ranks, and the own replicas leave it out besides") {
  const auto state = test::borrowing_state();
  const auto image =
      image_of(0, state,
               {.block_bytes = 4096,
                .borrowed = {{2, kBoth}},
                .lent = {{3, {"both.a"}}, {2, {"both.b"}}, {1, {"both.a"}}, {2, {"both.a"}}}});
  const auto loans = read_loans(image.bytes());
  CHECK(loans.borrowed == std::vector<Loan>{{2, digest_of(image, kBoth)}});
  const auto a = digest_of(image, {"both.a"});
  CHECK(loans.lent == std::vector<Loan>{{1, a}, {2, loans.borrowed[0].digest}, {3, a}});
  CHECK(verify_image(image.bytes()) == image.info);
  CHECK(verify_replica(test::replica_of(image).bytes()) == image.info);
}

TEST_CASE("what is too small, or nowhere, or fills no block leaves an image of version 1") {
  const auto state = test::borrowing_state();
  const auto plain = image_of(2, state, {.block_bytes = 4096});
  CHECK(trailer_version(plain) == 1);
  CHECK(same_bytes(plain, image_of(2, state,
                                   {.block_bytes = 4096,
                                    .borrowed = {{0, {"small"}}, {3, {"none", "missing"}}},
                                    .lent = {{0, {"small", "none"}}, {3, {"missing"}}}})));
  CHECK(same_bytes(image_of(2, state, {.block_bytes = 32768}),
                   image_of(2, state, {.block_bytes = 32768, .borrowed = test::borrowed_names()})));
}

TEST_CASE("a plan made after another lends what it is told to, at the offsets of before") {
  const auto state = test::borrowing_state();
  const auto before = StagingPlan::compile(state, nullptr, {.block_bytes = 4096});
  const auto after =
      StagingPlan::compile(state, &before, {.block_bytes = 4096, .lent = {{0, kBoth}}});
  CHECK(after.layout().image_bytes == before.layout().image_bytes + 24);
  CHECK(after.layout().lent.size() == 1);
  const auto again = StagingPlan::compile(state, &after, {.block_bytes = 4096});
  CHECK(again.layout().manifest == before.layout().manifest);
}

TEST_CASE("an image lends to no rank that there cannot be") {
  const auto state = test::borrowing_state();
  const auto lending = [&](int rank) {
    return image_of(2, state, {.block_bytes = 4096, .lent = {{rank, kBoth}}});
  };
  CHECK_THROWS_AS(lending(2), InvalidArgument);
  CHECK_THROWS_AS(lending(4), InvalidArgument);
  CHECK_THROWS_AS(lending(-1), InvalidArgument);
}

TEST_CASE("loans that make no sense are refused with what is wrong") {
  const auto image = test::borrowing_image();  // borrows from ranks 0 and 3
  const auto at = loans_at(image);
  const auto refused = [](const Storage& bytes) {
    return test::refusal([&] { (void)read_loans(bytes.bytes()); });
  };
  const auto with = [&](std::size_t field, std::uint64_t value, std::size_t bytes) {
    const auto replica = test::with_trailer_field(test::replica_of(image), field, value, bytes);
    CHECK_THROWS_AS(read_replica_loans(replica.bytes()), CorruptData);
    return refused(test::with_trailer_field(image.memory, field, value, bytes));
  };
  REQUIRE(refused(image.memory) == "nothing");
  // How many there are: more than fit, and other than there is room for.
  for (const auto count : {std::uint64_t{1} << 32U, ~std::uint64_t{0}, std::uint64_t{100}}) {
    CHECK_THAT(with(176, count, 8), Contains(std::to_string(count) + " loans do not fit"));
  }
  for (const auto count : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{3}}) {
    CHECK_THAT(with(176, count, 8), Contains("bytes do not fit it"));
  }
  CHECK_THAT(with(at, 2, 4), Contains("a loan of kind 2"));
  CHECK_THAT(with(at + 24, ~std::uint64_t{0}, 4), Contains("a loan of kind 4294967295"));
  for (const int rank : {2, 4, -1, 3}) {  // itself, beyond the world, none, not ascending
    CHECK_THAT(with(at + 4, static_cast<std::uint32_t>(rank), 4),
               Contains("a loan with rank " + std::to_string(rank)));
  }
  CHECK_THAT(with(at + 28, 0, 4), Contains("a loan with rank 0"));

  // Borrowed by the word of one field and not by the other's.
  CHECK_THAT(with(168, 0, 8), Contains("0 bytes are borrowed from 2 ranks"));
  auto lending = test::with_trailer_field(image.memory, at, 1, 4);
  lending = test::with_trailer_field(lending, at + 24, 1, 4);
  CHECK_THAT(refused(lending), Contains("20480 bytes are borrowed from 0 ranks"));
  const auto first = first_rank({{2, kBoth}}, test::borrowing_state());
  CHECK_THAT(refused(test::with_trailer_field(first.memory, 168, 8192, 8)),
             Contains("8192 bytes are borrowed from 0 ranks"));

  // Versions that cannot say it, or that have nothing to say.
  CHECK_THAT(refused(test::with_trailer_field(first.memory, 8, 1, 4)),
             Contains("1 loans, which version 1 cannot"));
  const auto plain = test::make_image(test::borrowing_state());
  CHECK_THAT(refused(test::with_trailer_field(plain.memory, 8, 2, 4)),
             Contains("0 loans, which version 2 cannot"));
  CHECK_THAT(refused(test::with_trailer_field(plain.memory, 176, 1, 8)),
             Contains("1 loans, which version 1 cannot"));
}
