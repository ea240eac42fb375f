#include <meshstage/core/memory/copy_parts.hpp>
#include <meshstage/core/memory/resource.hpp>

#include <atomic>
#include <barrier>
#include <cstdint>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/support/catch.hpp"

using meshstage::CopyHint;
using meshstage::CopyParts;
using meshstage::Crew;
using meshstage::kHugePageBytes;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20U;

/// Ranges of these sizes at addresses that are no huge page's, never read or written.
std::vector<std::span<const std::byte>> ranges_of(const std::vector<std::size_t>& sizes) {
  std::vector<std::span<const std::byte>> ranges;
  std::uintptr_t at = 64 * kMiB + 4096;
  for (const std::size_t size : sizes) {
    ranges.emplace_back(reinterpret_cast<const std::byte*>(at), size);  // NOLINT: an address alone
    at += size + 64;
  }
  return ranges;
}

CopyParts parts_of(std::span<const std::span<const std::byte>> ranges) {
  CopyParts parts;
  for (const auto range : ranges) parts.add(range);
  return parts;
}

}  // namespace

TEST_CASE("every byte of every range is in one piece, and no piece crosses a huge page's end") {
  const std::vector<std::vector<std::size_t>> all{
      {},
      {0},
      {1},
      {0, 5, 0},
      {kHugePageBytes},
      {20 * kMiB + 3},
      {1, 100, kMiB, 3 * kMiB + 7, 0, 2047, 2048, 9 * kMiB},
      std::vector<std::size_t>(5000, 4097)};
  for (const auto& sizes : all) {
    const auto ranges = ranges_of(sizes);
    const auto parts = parts_of(ranges);
    std::size_t total = 0;
    for (const auto size : sizes) total += size;
    CHECK(parts.bytes() == total);
    for (const unsigned hands : {0U, 1U, 2U, 5U}) {  // 0: no crew
      Crew crew("test", hands);
      std::mutex mutex;
      std::vector<std::set<std::pair<std::size_t, std::size_t>>> copied(sizes.size());
      bool crosses = false, small_streamed = false;
      parts.run(hands == 0 ? nullptr : &crew, 0, [&](const CopyParts::Piece& piece) {
        const std::lock_guard lock(mutex);
        copied.at(piece.range).emplace(piece.offset, piece.bytes);
        const auto begin = reinterpret_cast<std::uintptr_t>(piece.of(ranges[piece.range]).data());
        crosses |= begin / kHugePageBytes != (begin + piece.bytes - 1) / kHugePageBytes;
        small_streamed |=
            piece.hint == CopyHint::kStreaming && (piece.bytes < 2048 || !parts.is_large());
      });
      CHECK_FALSE(crosses);
      CHECK_FALSE(small_streamed);
      for (std::size_t i = 0; i < sizes.size(); ++i) {
        std::size_t at = 0;
        for (const auto& [offset, bytes] : copied[i]) {
          REQUIRE(offset == at);
          at += bytes;
        }
        REQUIRE(at == sizes[i]);
      }
    }
  }
}

TEST_CASE("a large copy has as many threads as asked for, a small one the caller's alone") {
  Crew crew("test", 3);
  const auto large = parts_of(ranges_of({20 * kMiB}));
  REQUIRE(large.is_large());
  std::barrier<> all(3);  // passes only if three pieces are copied at the same time
  std::atomic<int> pieces{0};
  large.run(&crew, 0, [&](const CopyParts::Piece&) {
    if (pieces++ < 3) all.arrive_and_wait();
  });
  CHECK(pieces == 11);

  std::mutex mutex;
  std::set<std::thread::id> threads;
  const auto note = [&](const CopyParts::Piece&) {
    const std::lock_guard lock(mutex);
    threads.insert(std::this_thread::get_id());
    std::this_thread::yield();
  };
  const auto small = parts_of(ranges_of({7 * kMiB}));
  CHECK_FALSE(small.is_large());
  small.run(&crew, 0, note);
  large.run(&crew, 1, note);
  large.run(nullptr, 0, note);
  CHECK(threads == std::set{std::this_thread::get_id()});
}

TEST_CASE("what a copy throws comes out once, and no piece is copied afterwards") {
  const auto parts = parts_of(ranges_of({100 * kMiB}));
  for (const unsigned hands : {1U, 2U, 5U}) {
    Crew crew("test", hands);
    std::atomic<int> calls{0};
    CHECK_THROWS_WITH(parts.run(&crew, 0,
                                [&](const CopyParts::Piece&) {
                                  if (++calls > 3) throw std::runtime_error("no more");
                                }),
                      "no more");
    CHECK(calls <= 3 + static_cast<int>(hands));
  }
}
