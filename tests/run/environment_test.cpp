// Hosts, the variables of a rank, lines of output, and reports of ranks.
#include <poll.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <thread>
#include <vector>

#include <meshstage/core/comm/rank_environment.hpp>
#include <meshstage/core/comm/supervisor.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"
#include "tools/run/environment.hpp"
#include "tools/run/output.hpp"
#include "tools/run/reports.hpp"

using namespace meshstage;
using namespace meshstage::tools::run;

TEST_CASE("a hosts file deals the ranks host by host") {
  const auto hosts = parse_hosts("# the cluster\na 2\n\nb slots=3  # big\nc\n", "hosts");
  REQUIRE(hosts.size() == 3);
  const Place b = place_of(hosts, "b");
  CHECK(b.host == 1);
  CHECK(b.hosts == 3);
  CHECK(b.first_rank == 2);
  CHECK(b.ranks == 3);
  CHECK(b.world_size == 6);
  CHECK(b.first_host == "a");
  CHECK(place_of(hosts, "c").first_rank == 5);
  CHECK_THROWS_WITH(place_of(hosts, "d"), contains_text("\"d\"") && contains_text("a, b, c"));
}

TEST_CASE("a wrong line of a hosts file is named") {
  CHECK_THROWS_WITH(parse_hosts("a 2\nb two\n", "f"), contains_text("f:2") && contains_text("two"));
  CHECK_THROWS_WITH(parse_hosts("a 0\n", "f"), contains_text("f:1"));
  CHECK_THROWS_WITH(parse_hosts("a 1 2\n", "f"), contains_text("f:1"));
  CHECK_THROWS_WITH(parse_hosts("a\nb\na\n", "f"),
                    contains_text("f:3") && contains_text("listed twice"));
  CHECK_THROWS_WITH(parse_hosts("# nobody\n", "f"), contains_text("no host"));
}

TEST_CASE("what a rank is given is what the library reads, whatever launcher is above") {
  Launch launch;
  launch.place = place_of(parse_hosts("a 2\nb 4\n", "f"), "b");
  launch.job = "gpt2";
  launch.store = "tcp://a:29400";
  launch.name = "run-7";
  launch.supervisor = "/x/supervisor";
  launch.master_port = 29'501;
  launch.processors = 9;
  const Environment outer{{"SLURM_PROCID", "0"},   {"SLURM_NTASKS", "2"},
                          {"SLURM_LOCALID", "0"},  {"OMPI_COMM_WORLD_RANK", "1"},
                          {"PMI_RANK", "1"},       {"RANK", "7"},
                          {"MESHSTAGE_RANK", "7"}, {"HOME", "/home/u"}};
  const Environment mine = rank_environment(launch, 3, outer);
  const RankEnvironment read = RankEnvironment::detect(mine);
  CHECK(read.rank == 5);
  CHECK(read.world_size == 6);
  CHECK(read.local_rank == 3);
  CHECK(read.local_world_size == 4);
  CHECK(read.job == "gpt2");
  CHECK(read.store == "tcp://a:29400");
  CHECK(read.launch == "run-7");
  CHECK(read.host == "b");
  CHECK(read.supervisor == "/x/supervisor");
  CHECK(mine.at("RANK") == "5");
  CHECK(mine.at("WORLD_SIZE") == "6");
  CHECK(mine.at("LOCAL_RANK") == "3");
  CHECK(mine.at("LOCAL_WORLD_SIZE") == "4");
  CHECK(mine.at("GROUP_RANK") == "1");
  CHECK(mine.at("MASTER_ADDR") == "a");
  CHECK(mine.at("MASTER_PORT") == "29501");
  CHECK(mine.at("OMP_NUM_THREADS") == "2");
  CHECK(mine.at("HOME") == "/home/u");
  CHECK_FALSE(mine.contains("OMPI_COMM_WORLD_RANK"));
}

TEST_CASE("what the user has set stays where it is no number of a rank") {
  Launch launch;
  launch.place.ranks = launch.place.world_size = 2;
  const Environment mine =
      rank_environment(launch, 0, {{"OMP_NUM_THREADS", "3"}, {"MESHSTAGE_STORE", "file:/s"}});
  CHECK(mine.at("OMP_NUM_THREADS") == "3");
  CHECK(mine.at("MESHSTAGE_STORE") == "file:/s");
  CHECK(mine.at("MASTER_ADDR") == "127.0.0.1");
}

TEST_CASE("output is cut into lines, whole ones and the last") {
  std::vector<std::string> lines;
  LineCutter cutter([&](std::string_view line) { lines.emplace_back(line); });
  cutter.take("one\ntw");
  cutter.take("o\n\nthr");
  CHECK(lines == std::vector<std::string>{"one", "two", ""});
  cutter.end();
  cutter.end();
  CHECK(lines.back() == "thr");
  CHECK(lines.size() == 4);
  cutter.take(std::string(LineCutter::kLongest + 10, 'x'));
  CHECK(lines.size() == 5);  // does not grow for ever
}

TEST_CASE("the tail keeps the last lines") {
  Tail tail(2);
  for (const char* line : {"a", "b", "c"}) tail.add(line);
  CHECK(tail.lines() == std::deque<std::string>{"b", "c"});
}

TEST_CASE("prefixes are as wide as the largest rank's") {
  CHECK(line_prefix(3, 12, false) == "[ 3] ");
  CHECK(line_prefix(11, 12, false) == "[11] ");
  CHECK(line_prefix(3, 4, false) == "[3] ");
}

TEST_CASE("reports that the library sends arrive; others are ignored") {
  using Kind = Report::Kind;
  Reports reports;
  std::vector<Report> taken;
  const auto come = [&] {  // until "left", the last
    for (const auto& report : reports.take()) taken.push_back(report);
    return !taken.empty() && taken.back().kind == Kind::kLeft;
  };
  {
    SupervisorReports rank(reports.path(), 3, std::chrono::hours(1));
    CHECK_FALSE(come());
    rank.forming();
    rank.joined(17);
    rank.left();
    CHECK(come());
    rank.left();  // says it once
  }
  const std::vector<Kind> kinds{Kind::kForming, Kind::kJoined, Kind::kAlive, Kind::kLeft};
  REQUIRE(taken.size() == kinds.size());
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    CHECK(taken[i].kind == kinds[i]);
    CHECK(taken[i].rank == 3);
  }
  CHECK(taken[1].number == 17);
  CHECK(taken[0].number == taken[2].number);
  CHECK(taken[0].number == taken[3].number);
  for (const char* wrong : {"", "joined", "joined 1", "joined -1 2", "joined 1 2 3", "lost 1 2"}) {
    INFO(wrong);
    CHECK_FALSE(parse_report(wrong));
  }
  SupervisorReports("/nowhere/at/all", 0).alive();  // nobody listens: nothing happens
  SupervisorReports("", 0).alive();
}

TEST_CASE("a report is repeated until another one takes its place, or the reporter ends") {
  using Kind = Report::Kind;
  Reports reports;
  const auto next = [&]() -> std::optional<Report> {
    pollfd readable{reports.descriptor(), POLLIN, 0};
    constexpr int kLongest = 20'000;
    if (::poll(&readable, 1, kLongest) != 1) return std::nullopt;
    return reports.take().back();
  };
  {
    SupervisorReports rank(reports.path(), 3, std::chrono::milliseconds(5));
    rank.forming();
    for (int i = 0; i < 3; ++i) {
      const auto report = next();
      REQUIRE(report);
      CHECK(report->kind == Kind::kForming);
    }
    rank.alive();
    (void)reports.take();
    for (int i = 0; i < 3; ++i) {
      const auto report = next();
      REQUIRE(report);
      CHECK(report->kind == Kind::kAlive);
    }
    // Read while it ends: a reader that is slow has a full socket, in which its last word is lost.
    std::atomic<bool> ended{false};
    std::optional<Report> last;
    std::thread reader([&] {
      while (!ended || !last || last->kind != Kind::kLeft) {
        last = next();
        if (!last) return;
      }
    });
    rank.left();
    ended = true;
    reader.join();
    REQUIRE(last);
    CHECK(last->kind == Kind::kLeft);
  }
}
