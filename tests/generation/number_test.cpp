#include <chrono>
#include <cstdint>
#include <set>

#include <meshstage/core/generation/number.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;

TEST_CASE("a run's number is above all that was seen, and leaves room for its generations") {
  for (const std::uint64_t seen : {std::uint64_t{0}, std::uint64_t{41}, draw_run(0) + 7,
                                   draw_run(0) + (std::uint64_t{1000} << 25U)}) {
    const std::uint64_t run = draw_run(seen);
    CHECK(run > seen);
    CHECK_FALSE(same_run(run, seen));
    CHECK(generation_in_run(run) == 0);
    CHECK(generation_in_run(run + 3) == 3);
    CHECK(same_run(run + 1, run + 3));
  }
}

TEST_CASE("runs of one second differ") {
  // 64 draws of 14 random bits: two are equal once in 9 times; 16 of them in no lifetime.
  std::set<std::uint64_t> drawn;
  for (int i = 0; i < 64; ++i) drawn.insert(draw_run(0));
  CHECK(drawn.size() > 48);
}

TEST_CASE("a run that begins later is newer") {
  using namespace std::chrono;
  const auto seconds_of = [](std::uint64_t run) { return run >> 25U; };
  const auto before = duration_cast<seconds>(system_clock::now().time_since_epoch()).count();
  const std::uint64_t run = draw_run(0);
  constexpr std::int64_t kYear2020 = 1577836800;
  CHECK(seconds_of(run) >= static_cast<std::uint64_t>(before - kYear2020));
  CHECK(seconds_of(run) <= static_cast<std::uint64_t>(before - kYear2020) + 60);
}

TEST_CASE("texts show the number within the run, and when the run began") {
  constexpr std::uint64_t kTenSeconds = std::uint64_t{10} << 25U;
  CHECK(generation_text(3) == "generation 3");
  CHECK(generation_text(kTenSeconds + (5U << 11U) + 3) == "generation 3");
  CHECK(run_text(kTenSeconds + 3) == "the run begun at 2020-01-01 00:00:10 UTC");
  CHECK(run_text(3) == "a run of an older release");
}
