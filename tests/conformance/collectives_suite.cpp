#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/rank_tree.hpp>

#include "tests/conformance/process_group_suite.hpp"
#include "tests/support/catch.hpp"

namespace meshstage::testing {

namespace {

using namespace std::chrono_literals;
using collectives::Element;
using collectives::ReduceOp;

Deadline soon() { return Deadline::after(30s); }

/// Values whose sum depends on the order: of very different magnitude.
std::vector<float> values_of(int rank, std::size_t n) {
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; ++i) {
    const auto k = static_cast<float>((static_cast<std::size_t>(rank) * 7919 + i * 104729) % 1000);
    values[i] =
        (k - 500.0F) * std::pow(10.0F, static_cast<float>((rank + static_cast<int>(i)) % 7));
  }
  return values;
}

/// The documented order: own + left subtree + right subtree.
std::vector<float> tree_sum(int rank, int world, std::size_t n) {
  std::vector<float> sum = values_of(rank, n);
  for (const int child : tree::children(rank, world)) {
    const auto below = tree_sum(child, world, n);
    for (std::size_t i = 0; i < n; ++i) sum[i] += below[i];
  }
  return sum;
}

template <class T>
std::vector<T> reduced(ProcessGroup& group, std::vector<T> data, ReduceOp op) {
  collectives::all_reduce(group, std::span(data), op, soon());
  return data;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace

void collectives_conform(const TransportOf& transport) {
  for (const int world : {1, 2, 3, 5}) {
    DYNAMIC_SECTION("tree collectives of " << world << " ranks do what they say") {
      const auto groups = make_groups(transport, world, Linked::kTree);
      const auto count = static_cast<std::size_t>(world);
      constexpr std::size_t kLong = 300'000;  // several pieces, the last one shorter
      const std::vector<float> expected = tree_sum(0, world, kLong);
      std::vector<std::vector<float>> sums(count);
      std::vector<std::string> wrong(count);
      run_ranks_without_error(world, [&](int rank) {
        const auto me = static_cast<std::size_t>(rank);
        ProcessGroup& group = *groups[me];
        const auto expect = [&](bool ok, const std::string& what) {
          if (!ok) wrong[me] += what + "; ";
        };
        sums[me] = reduced(group, values_of(rank, kLong), ReduceOp::kSum);
        auto average = expected;
        for (auto& v : average) v /= static_cast<float>(world);
        expect(same_bits(reduced(group, values_of(rank, kLong), ReduceOp::kAvg), average), "avg");
        expect(reduced(group, std::vector<double>{}, ReduceOp::kSum).empty(), "empty");

        const std::int64_t n = rank + 1;
        std::int64_t factorial = 1;
        for (int r = 1; r <= world; ++r) factorial *= r;
        expect(reduced(group, std::vector{n}, ReduceOp::kProduct)[0] == factorial, "product");
        expect(reduced(group, std::vector{-n}, ReduceOp::kMin)[0] == -world, "min");
        expect(reduced(group, std::vector<std::int32_t>{rank}, ReduceOp::kMax)[0] == world - 1,
               "max");
        // Unsigned and narrow numbers wrap.
        const auto wrapped = static_cast<std::uint8_t>(200 * world);
        expect(reduced(group, std::vector<std::uint8_t>{200}, ReduceOp::kSum)[0] == wrapped, "u8");
        const double nan = rank == world - 1 ? std::numeric_limits<double>::quiet_NaN() : 1.0;
        expect(std::isnan(reduced(group, std::vector{nan}, ReduceOp::kMin)[0]), "nan");
        // In f16 1 + 2^-11 ties to even, which is 1; 1 + 3 * 2^-11 (the left subtree of five ranks)
        // ties to 1 + 2^-9. Rounded once at the end, both would be more.
        std::vector<std::uint16_t> half{static_cast<std::uint16_t>(rank == 0 ? 0x3c00 : 0x1000)};
        collectives::all_reduce(group, std::as_writable_bytes(std::span(half)), Element::kF16,
                                ReduceOp::kSum, soon());
        expect(half[0] == (world == 5 ? 0x3c02 : 0x3c00), "f16");
        // 60000 each: the sum is beyond f16, the mean is not. Several parts and pieces.
        std::vector<std::uint16_t> large(4'500'000, 0x7b53);
        large.back() = static_cast<std::uint16_t>(rank == 0 ? 0x3c00 : 0x0000);
        collectives::all_reduce(group, std::as_writable_bytes(std::span(large)), Element::kF16,
                                ReduceOp::kAvg, soon());
        expect(std::all_of(large.begin(), large.end() - 1, [](auto h) { return h == 0x7b53; }),
               "avg of large f16");
        const std::array<std::uint16_t, 6> reciprocals{0, 0x3c00, 0x3800, 0x3555, 0x3400, 0x3266};
        expect(large.back() == reciprocals.at(count), "avg of f16");
        std::vector<std::uint16_t> brain{0x4040};  // 3.0
        collectives::all_reduce(group, std::as_writable_bytes(std::span(brain)), Element::kBF16,
                                ReduceOp::kMax, soon());
        expect(brain[0] == 0x4040, "bf16");

        for (int root = 0; root < world; ++root) {
          std::vector<std::byte> data(700'001, static_cast<std::byte>(rank));
          collectives::broadcast(group, data, root, soon());
          expect(std::all_of(data.begin(), data.end(),
                             [&](std::byte b) { return b == static_cast<std::byte>(root); }),
                 "broadcast");
          const std::vector<std::byte> mine(3, static_cast<std::byte>(rank + 1));
          std::vector<std::byte> all(rank == root ? 3 * count : 0);
          collectives::gather(group, mine, all, root, soon());
          for (std::size_t i = 0; i < all.size(); ++i) {
            expect(all[i] == static_cast<std::byte>(i / 3 + 1), "gather");
          }
        }
        std::vector<std::int32_t> all(count);
        const std::int32_t own = rank * rank;
        collectives::all_gather(group, std::as_bytes(std::span(&own, 1)),
                                std::as_writable_bytes(std::span(all)), soon());
        for (std::size_t i = 0; i < count; ++i) {
          expect(all[i] == static_cast<std::int32_t>(i * i), "all_gather");
        }
        // Rank r has r bytes: rank 0 none.
        const std::vector<std::byte> ragged(me, static_cast<std::byte>(rank));
        const auto strings = collectives::all_gather_bytes(group, ragged, soon());
        for (std::size_t i = 0; i < count; ++i) {
          expect(strings[i] == std::vector<std::byte>(i, static_cast<std::byte>(i)),
                 "all_gather_bytes");
        }
        collectives::barrier(group, soon());
      });
      for (std::size_t r = 0; r < count; ++r) {
        INFO("rank " << r);
        CHECK(wrong[r] == "");
        CHECK(same_bits(sums[r], expected));
      }
    }
  }

  SECTION("full collectives do what they say, and say so where a link is missing") {
    constexpr int kWorld = 4;
    const auto groups = make_groups(transport, kWorld, Linked::kAll);
    std::vector<std::vector<float>> scattered(kWorld);
    std::vector<std::vector<std::vector<std::byte>>> exchanged(kWorld);
    std::vector<char> averaged(kWorld);
    constexpr std::size_t kEach = 1000;
    run_ranks_without_error(kWorld, [&](int rank) {
      const auto me = static_cast<std::size_t>(rank);
      const auto data = values_of(rank, kEach * kWorld);
      scattered[me].resize(kEach);
      collectives::reduce_scatter(*groups[me], std::as_bytes(std::span(data)),
                                  std::as_writable_bytes(std::span(scattered[me])), Element::kF32,
                                  ReduceOp::kSum, soon());
      // 60000 each in f16: the mean fits, and is that of the own part.
      std::vector<std::uint16_t> halves(4 * kWorld, 0x7b53), mean(4);
      halves[4 * 2] = rank == 0 ? 0x3c00 : 0x0000;
      collectives::reduce_scatter(*groups[me], std::as_bytes(std::span(halves)),
                                  std::as_writable_bytes(std::span(mean)), Element::kF16,
                                  ReduceOp::kAvg, soon());
      averaged[me] = mean == std::vector<std::uint16_t>{
                                 static_cast<std::uint16_t>(rank == 2 ? 0x3400 : 0x7b53), 0x7b53,
                                 0x7b53, 0x7b53};
      // From rank a to rank b: a + b bytes of value 16 a + b.
      std::vector<std::vector<std::byte>> out(kWorld);
      exchanged[me].resize(kWorld);
      std::vector<std::span<const std::byte>> parts;
      std::vector<std::span<std::byte>> incoming;
      for (std::size_t r = 0; r < kWorld; ++r) {
        out[r].assign(me + r, static_cast<std::byte>(16 * me + r));
        exchanged[me][r].resize(me + r);
        parts.emplace_back(out[r]);
        incoming.emplace_back(exchanged[me][r]);
      }
      collectives::all_to_all(*groups[me], parts, incoming, soon());
    });
    CHECK(averaged == std::vector<char>(kWorld, 1));
    for (std::size_t me = 0; me < kWorld; ++me) {
      std::vector<float> expected(kEach);
      for (int r = 0; r < kWorld; ++r) {
        const auto all = values_of(r, kEach * kWorld);
        for (std::size_t i = 0; i < kEach; ++i) {
          expected[i] = r == 0 ? all[me * kEach + i] : expected[i] + all[me * kEach + i];
        }
      }
      CHECK(same_bits(scattered[me], expected));
      for (std::size_t r = 0; r < kWorld; ++r) {
        CHECK(exchanged[me][r] ==
              std::vector<std::byte>(me + r, static_cast<std::byte>(16 * r + me)));
      }
    }
    const auto sparse = make_groups(transport, 4, Linked::kTree);
    std::vector<std::byte> data(16);
    CHECK_THROWS_AS(collectives::reduce_scatter(*sparse[0], data, std::span(data).first(4),
                                                Element::kF32, ReduceOp::kSum, soon()),
                    InvalidArgument);
    CHECK_THROWS_AS(collectives::all_to_all(*sparse[0], {}, {}, soon()), InvalidArgument);
    CHECK_THROWS_AS(
        collectives::all_reduce(*sparse[0], data, Element::kI32, ReduceOp::kAvg, soon()),
        InvalidArgument);
    CHECK_THROWS_AS(collectives::all_reduce(*sparse[0], std::span(data).first(3), Element::kF32,
                                            ReduceOp::kSum, soon()),
                    InvalidArgument);
    CHECK_THROWS_AS(collectives::broadcast(*sparse[0], data, 4, soon()), InvalidArgument);
  }
}

}  // namespace meshstage::testing
