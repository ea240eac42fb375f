#include <vector>

#include <meshstage/core/device/pinned_ranges_impl.hpp>

#include "tests/support/catch.hpp"

using meshstage::detail::PinnedRanges;

namespace {

// Lengths and kernel addresses of the parts of a run, 0 where it is not page-locked.
std::vector<std::pair<std::uint64_t, std::uint64_t>> parts_of(const PinnedRanges& ranges,
                                                              std::span<std::byte> bytes) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> found;
  const std::byte* at = bytes.data();
  for (const auto& part : ranges.parts(bytes)) {
    CHECK(part.begin == at);
    at += part.bytes;
    found.emplace_back(part.bytes, part.address);
  }
  CHECK(at == bytes.data() + bytes.size());
  return found;
}

}  // namespace

TEST_CASE("a run of host memory is cut where page-locked pieces begin and end") {
  std::vector<std::byte> memory(100);
  const std::span all(memory);
  PinnedRanges ranges;
  using Parts = std::vector<std::pair<std::uint64_t, std::uint64_t>>;
  CHECK(parts_of(ranges, all) == Parts{{100, 0}});
  CHECK(ranges.parts({}).empty());
  ranges.add(all.subspan(10, 20), 1000);
  ranges.add(all.subspan(30, 20), 5000);
  ranges.add(all.subspan(60, 20), 7000);
  CHECK(parts_of(ranges, all) ==
        Parts{{10, 0}, {20, 1000}, {20, 5000}, {10, 0}, {20, 7000}, {20, 0}});
  CHECK(parts_of(ranges, all.subspan(15, 20)) == Parts{{15, 1005}, {5, 5000}});
  CHECK(parts_of(ranges, all.subspan(30, 20)) == Parts{{20, 5000}});
  CHECK(parts_of(ranges, all.subspan(29, 1)) == Parts{{1, 1019}});
  CHECK(parts_of(ranges, all.subspan(50, 10)) == Parts{{10, 0}});
  CHECK(parts_of(ranges, all.subspan(0, 10)) == Parts{{10, 0}});
  CHECK(ranges.contains(all.subspan(10, 40)));
  CHECK_FALSE(ranges.contains(all.subspan(10, 41)));
  CHECK_FALSE(ranges.contains(all.subspan(9, 2)));
  CHECK_FALSE(ranges.contains({}));
  ranges.remove(all.subspan(30, 20));
  CHECK(parts_of(ranges, all.subspan(20, 30)) == Parts{{10, 1010}, {20, 0}});
}
