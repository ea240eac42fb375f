#include <limits>

#include <meshstage/core/error/error.hpp>
#include <meshstage/dtensor/arithmetic.hpp>

#include "tests/dtensor/definition.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

template <class T>
std::vector<T> one_rank(std::vector<T> values, const std::function<DTensor(const DTensor&)>& f) {
  const auto d = DTensor::from_full(Tensor::from_vector(values), DeviceMesh::from_shape({1}), 0,
                                    {Placement()});
  return f(d).to_local().template to_vector<T>();
}

}  // namespace

TEST_CASE("a number is added to and multiplies each element of every numeric dtype") {
  const auto both = [](const DTensor& d) { return 2 * (d + 1); };
  CHECK(one_rank<float>({0, 1.5F}, both) == std::vector<float>{2, 5});
  CHECK(one_rank<double>({-1, 2}, both) == std::vector<double>{0, 6});
  CHECK(one_rank<std::int64_t>({-1, 1LL << 60}, both) ==
        std::vector<std::int64_t>{0, (1LL << 61) + 2});
  CHECK(one_rank<std::uint8_t>({1, 127}, both) == std::vector<std::uint8_t>{4, 0});
  CHECK(one_rank<std::uint32_t>({1, 4294967295U}, both) == std::vector<std::uint32_t>{4, 0});
  CHECK(one_rank<std::int16_t>({1, 2}, [](const DTensor& d) { return d * -1.0; }) ==
        std::vector<std::int16_t>{-1, -2});
  CHECK(one_rank<std::complex<float>>({{1, 1}}, both) == std::vector<std::complex<float>>{{4, 2}});
  CHECK(one_rank<Half>({{0x3c00}}, both) == std::vector<Half>{{0x4400}});          // 1 to 4
  CHECK(one_rank<BFloat16>({{0x3f80}}, both) == std::vector<BFloat16>{{0x4080}});  // 1 to 4
  CHECK(one_rank<std::uint64_t>({1}, [](const DTensor& d) { return d + 0x1p63; }) ==
        std::vector<std::uint64_t>{(std::uint64_t{1} << 63) + 1});
}

TEST_CASE("integers are exact up to 64 bits, signed and unsigned") {
  const auto u64 = [](std::uint64_t element, Scalar number, bool add) {
    return one_rank<std::uint64_t>(
        {element}, [&](const DTensor& d) { return add ? d + number : d * number; })[0];
  };
  constexpr std::uint64_t kMost = ~std::uint64_t{0};
  constexpr std::uint64_t kHalf = std::uint64_t{1} << 63U;
  CHECK(u64(0, kMost, true) == kMost);
  CHECK(u64(1, kHalf + 1, true) == kHalf + 2);
  CHECK(u64(5, (std::uint64_t{1} << 53U) + 1, true) == (std::uint64_t{1} << 53U) + 6);
  CHECK(u64(1, kMost - 2, false) == kMost - 2);
  CHECK(u64(3, 0x5555555555555555ULL, false) == kMost);
  CHECK(u64(2, kMost, true) == 1);  // wraps
  CHECK(one_rank<std::int64_t>({1}, [](const DTensor& d) { return d + INT64_MAX; })[0] ==
        INT64_MIN);
  CHECK(one_rank<std::int64_t>({-1}, [](const DTensor& d) { return d + INT64_MIN; })[0] ==
        INT64_MAX);
  CHECK_THROWS_WITH((one_rank<std::int64_t>({1}, [](const DTensor& d) { return d + (kHalf + 1); })),
                    Contains("9223372036854775809 is not a whole number that fits I64"));
  CHECK_THROWS_WITH((one_rank<std::uint64_t>({1}, [](const DTensor& d) { return d * -3; })),
                    Contains("-3 is not"));
}

TEST_CASE("what a dtype cannot hold is refused, nothing is promoted") {
  CHECK_THROWS_WITH((one_rank<std::int32_t>({1}, [](const DTensor& d) { return d + 0.5; })),
                    Contains("0.5") && Contains("I32"));
  CHECK_THROWS_AS((one_rank<std::uint8_t>({1}, [](const DTensor& d) { return d + 256; })),
                  InvalidArgument);
  CHECK_THROWS_AS((one_rank<std::uint8_t>({1}, [](const DTensor& d) { return d * -1; })),
                  InvalidArgument);
  CHECK_THROWS_AS((one_rank<std::int64_t>({1}, [](const DTensor& d) { return d + 0x1p63; })),
                  InvalidArgument);
  CHECK_THROWS_AS(
      (one_rank<std::int8_t>(
          {1}, [](const DTensor& d) { return d * std::numeric_limits<double>::quiet_NaN(); })),
      InvalidArgument);
  const auto flags = DTensor::from_full(Tensor::full<bool>({2}, true), DeviceMesh::from_shape({1}),
                                        0, {Placement()});
  CHECK_THROWS_AS(flags + 1, InvalidArgument);
}

TEST_CASE("the result has memory and description of its own tensor, the operand stays") {
  const auto whole = Tensor::arange<float>(6).view({2, 3}).transpose(0, 1);
  const auto d = DTensor::from_full(whole, DeviceMesh::from_shape({2}), 1, {Placement::shard(0)});
  const auto e = d * 2 + 1;
  CHECK(e.spec() == d.spec());
  CHECK(e.rank() == 1);
  CHECK(d.to_local().to_vector<float>() == std::vector<float>{2, 5});
  CHECK(e.to_local().to_vector<float>() == std::vector<float>{5, 11});
}

TEST_CASE("partials follow the definition, or are refused at every rank") {
  const auto mesh = DeviceMesh::from_shape({2, 3});
  const Shape shape{2};
  for (int first = -1; first < 5; ++first) {
    for (int second = -1; second < 5; ++second) {
      Placements placements(2);
      if (first >= 0) placements[0] = Placement::partial(static_cast<ReduceOp>(first));
      if (second >= 0) placements[1] = Placement::partial(static_cast<ReduceOp>(second));
      std::vector<DTensor> parts;
      std::vector<Tensor> locals;
      for (int r = 0; r < 6; ++r) {
        auto at = *mesh.coordinate(r);
        if (first < 0) at[0] = 0;
        if (second < 0) at[1] = 0;
        const auto seed = static_cast<double>(3 * at[0] + at[1]);
        const auto local = Tensor::from_vector<double>({6 * seed - 12, 6 * (3 - seed)});
        const DTensorSpec spec{mesh, placements, DType::kF64, shape, {1}};
        parts.push_back(DTensor::from_spec(local, spec, r));
        locals.push_back(local);
      }
      const auto whole = *whole_by_definition(mesh, shape, placements, locals);
      for (const auto& [add, number] :
           {std::pair(true, 4.0), {true, -5.0}, {false, 3.0}, {false, -2.0}}) {
        INFO(to_string(placements) << (add ? " + " : " * ") << number);
        std::vector<Tensor> results;
        int refusals = 0;
        for (const auto& part : parts) {
          try {
            results.push_back((add ? part + number : part * number).to_local());
          } catch (const InvalidArgument& e) {
            ++refusals;
          }
        }
        const auto has = [&](ReduceOp op) {
          return placements[0] == Placement::partial(op) || placements[1] == Placement::partial(op);
        };
        const bool refused = add ? has(ReduceOp::kProduct)
                                 : number < 0 && (has(ReduceOp::kMin) || has(ReduceOp::kMax));
        CHECK(refusals == (refused ? 6 : 0));
        if (refused) continue;
        auto expected = whole;
        for (double& x : expected) x = add ? x + number : x * number;
        CHECK(*whole_by_definition(mesh, shape, placements, results) == expected);
      }
    }
  }
}
