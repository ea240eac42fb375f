// Which rank hangs, by what the ranks report.
#include "tools/run/hangs.hpp"
#include "tests/support/catch.hpp"

using namespace std::chrono_literals;
using namespace meshstage::tools::run;
using Kind = Report::Kind;
using Time = Hangs::Time;

namespace {

constexpr std::uint64_t kToken = 77;

/// Three ranks, 4 to 6 of their job, of which each reports something every second.
struct Host {
  Hangs hangs;
  Time now{1000s};
  std::vector<std::optional<Kind>> says = std::vector<std::optional<Kind>>(3, Kind::kAlive);

  explicit Host(HangRules rules) : hangs(3, 4, rules) {
    for (int rank = 0; rank < 3; ++rank) hangs.started(rank);
  }
  /// The first hang that is seen in this time, if any.
  std::optional<Hang> pass(std::chrono::seconds time, std::uint64_t token = kToken) {
    for (const Time end = now + time; now < end;) {
      now += 1s;
      for (int rank = 0; rank < 3; ++rank) {
        const auto kind = says[static_cast<std::size_t>(rank)];
        if (kind) hangs.reported(rank, *kind, token, now);
      }
      if (auto hang = hangs.look(now)) return hang;
    }
    return std::nullopt;
  }
};

constexpr HangRules kSilent{.silent = 30s, .away = {}};
constexpr HangRules kAway{.silent = {}, .away = 60s};

}  // namespace

TEST_CASE("a silent rank hangs when others have waited for it for so long") {
  Host host(kSilent);
  CHECK_FALSE(host.pass(10s));
  host.says[1] = std::nullopt;
  CHECK_FALSE(host.pass(500s));  // its peers have not given it up
  host.says[0] = Kind::kForming;
  const Time waiting = host.now + 1s;
  const auto hang = host.pass(500s);
  REQUIRE(hang);
  CHECK(host.now - waiting == 30s);
  CHECK(hang->rank == 1);
  CHECK(hang->how == "no sign of life for 531 s while rank 4 waited for it");
}

TEST_CASE("silence counts from the last report, though others wait for longer") {
  Host host(kSilent);
  host.says = {Kind::kForming, Kind::kAlive, Kind::kForming};
  CHECK_FALSE(host.pass(100s));
  host.says[1] = std::nullopt;
  const Time last = host.now;
  const auto hang = host.pass(500s);
  REQUIRE(hang);
  CHECK(host.now - last == 30s);
  CHECK(hang->how == "no sign of life for 30 s while ranks 4, 6 waited for it");
}

TEST_CASE("a rank that lives does not hang, however long the others wait for it") {
  Host host(kSilent);
  host.says = {Kind::kForming, Kind::kAlive, Kind::kForming};
  CHECK_FALSE(host.pass(10'000s));
}

TEST_CASE("nor do ranks that all wait, all are silent, report nothing at all, or have left") {
  Host host(kSilent);
  SECTION("all wait") { host.says = {Kind::kForming, Kind::kForming, Kind::kForming}; }
  SECTION("all are silent") {
    (void)host.pass(10s);
    host.says = {std::nullopt, std::nullopt, std::nullopt};
  }
  SECTION("all were stopped while they waited") {
    host.says = {Kind::kForming, Kind::kForming, Kind::kForming};
    (void)host.pass(10s);
    host.says = {std::nullopt, std::nullopt, std::nullopt};
  }
  SECTION("it never reported") { host.says = {Kind::kForming, std::nullopt, Kind::kForming}; }
  SECTION("it left") {
    (void)host.pass(10s);
    host.says = {Kind::kForming, Kind::kLeft, Kind::kForming};
    (void)host.pass(1s);
    host.says[1] = std::nullopt;
  }
  CHECK_FALSE(host.pass(1'000s));
}

TEST_CASE("a new process of a rank begins without a report, whatever the old one still reports") {
  Host host(kSilent);
  host.says = {Kind::kForming, Kind::kAlive, Kind::kForming};
  CHECK_FALSE(host.pass(10s));
  host.hangs.started(1);  // none: it was killed
  host.hangs.started(1);
  host.hangs.reported(1, Kind::kAlive, kToken, host.now);
  host.says[1] = std::nullopt;
  CHECK_FALSE(host.pass(1'000s));  // it loads its data
  host.hangs.reported(1, Kind::kForming, kToken + 1, host.now);
  CHECK(host.pass(100s));
}

TEST_CASE("time in which nobody looked does not count") {
  Host host(kSilent);
  CHECK_FALSE(host.pass(10s));
  host.says = {Kind::kForming, std::nullopt, Kind::kForming};
  CHECK_FALSE(host.pass(20s));
  host.now += 600s;  // the launcher was stopped
  const Time back = host.now + 1s;
  CHECK(host.pass(100s));
  CHECK(host.now - back == 30s);
}

TEST_CASE("a trainer that does not come hangs only if that is asked for") {
  Host host(kAway);
  CHECK_FALSE(host.pass(500s));
  host.says = {Kind::kForming, Kind::kAlive, Kind::kForming};
  const Time waiting = host.now + 1s;
  const auto hang = host.pass(500s);
  REQUIRE(hang);
  CHECK(host.now - waiting == 60s);
  CHECK(hang->rank == 1);
  CHECK(hang->how ==
        "its process lives, but its trainer was away for 60 s while ranks 4, 6 "
        "waited for it");
  host.hangs.started(1);
  host.says[1] = Kind::kForming;
  CHECK_FALSE(host.pass(500s, kToken + 1));
}

TEST_CASE("a trainer is away from when it left the last forming on, not since it ever was") {
  Host host(kAway);
  host.says = {Kind::kForming, Kind::kAlive, Kind::kForming};
  CHECK_FALSE(host.pass(50s));
  host.says[1] = Kind::kForming;
  CHECK_FALSE(host.pass(1s));
  host.says[1] = Kind::kAlive;
  CHECK_FALSE(host.pass(55s));
}

TEST_CASE("without rules nothing hangs") {
  Host host(HangRules{.silent = {}, .away = {}});
  (void)host.pass(10s);
  host.says = {Kind::kForming, Kind::kAlive, std::nullopt};
  CHECK_FALSE(host.pass(10'000s));
}
