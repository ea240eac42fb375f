// What a rank tells of itself: traces and figures.
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <meshstage/core/checkpoint/metrics.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/temp_directory.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::InProcessJob;
using ms::test::run_ranks;

std::string contents(const std::filesystem::path& file) {
  std::ifstream in(file);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

/// As the trace event format wants it: docs.google.com, "Trace Event Format", read by Perfetto 52.
void check_event(const nlohmann::json& event, int rank) {
  INFO(event.dump());
  const std::string kind = event.at("ph");
  CHECK(event.at("pid") == rank);
  CHECK_FALSE(event.at("name").get<std::string>().empty());
  CHECK(event.at("args").is_object());
  if (kind == "M") {
    CHECK(event.at("args").at("name").is_string());
    return;
  }
  CHECK(event.at("tid").is_number_integer());
  CHECK(event.at("ts").get<std::int64_t>() > 0);
  CHECK((kind == "X" || kind == "i"));
  if (kind == "X") CHECK(event.at("dur").get<std::int64_t>() >= 0);
  if (kind == "i") CHECK(event.at("s") == "t");
}

}  // namespace

TEST_CASE("a trace has a span for each thing that takes time, on every rank") {
  const TempDirectory directory;
  InProcessJob job(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto options = job.options(rank);
    options.persist_every = 1;
    options.trace = directory.path() / "trace.json";
    ms::Checkpointer ckpt(options);
    (void)ms::test::recover_fresh(ckpt);
    ms::test::stage_all(ckpt, {1, 2});
    ckpt.finish();
  }));
  for (const std::string rank : {"0", "1"}) {
    const std::string other = rank == "0" ? "1" : "0";
    const std::string text = contents(directory.path() / ("trace.r" + rank + ".json"));
    INFO(text);
    for (const std::string& part :
         {"\"name\":\"rank " + rank + "\"", std::string("stage and digest 1"),
          std::string("send 2"), std::string("receive and digest 2"), std::string("agree on 2"),
          std::string("persist 2"), std::string("recover nothing"),
          "\"name\":\"send to rank " + other + "\"",
          "\"name\":\"receive from rank " + other + "\""}) {
      CHECK_THAT(text, contains_text(part));
    }
    std::istringstream lines(text);
    std::string line;
    std::getline(lines, line);
    CHECK(line == "[");
    while (std::getline(lines, line)) {
      REQUIRE(line.ends_with("},"));
      check_event(nlohmann::json::parse(line.substr(0, line.size() - 1)), std::stoi(rank));
    }
  }
  InProcessJob again(2);
  for (int start = 0; start < 2; ++start) {  // the second one finds step 3
    all_good(run_ranks(all_ranks(2), [&](int rank) {
      auto options = again.options(rank);
      options.trace = directory.path() / "again.json";
      ms::Checkpointer ckpt(options);
      (void)ms::test::recover_fresh(ckpt);
      if (start == 0) ms::test::stage_all(ckpt, {3});
    }));
  }
  CHECK_THAT(contents(directory.path() / "again.r1.json"), contains_text("recover 3"));
  auto options = job.options(0);
  options.trace = directory.path() / "none" / "trace.json";
  CHECK_THROWS_AS(ms::Checkpointer(options), ms::IoError);
}

TEST_CASE("a file of lines and a callback get the figures of each step, to the last") {
  const TempDirectory directory;
  const auto file = directory.path() / "figures.jsonl";
  std::vector<ms::Stats> told[2];
  for (int start = 0; start < 2; ++start) {  // the second one appends
    InProcessJob job(2);
    all_good(run_ranks(all_ranks(2), [&](int rank) {
      auto options = job.options(rank);
      options.persist_every = 1;
      options.metrics = file;
      options.on_stats = [&, rank](const ms::Stats& stats) {
        told[static_cast<std::size_t>(rank)].push_back(stats);
      };
      ms::Checkpointer ckpt(options);
      (void)ms::test::recover_fresh(ckpt);
      ms::test::stage_all(ckpt, {1, 2});
      ckpt.finish();
    }));
  }
  for (const int rank : {0, 1}) {
    const auto& figures = told[static_cast<std::size_t>(rank)];
    REQUIRE_FALSE(figures.empty());
    CHECK(figures.back().complete == 3);  // step 0, too
    CHECK(figures.back().persisted > 0);
    CHECK(figures.back().disk_step == 2);
    std::istringstream lines(
        contents(directory.path() / ("figures.r" + std::to_string(rank) + ".jsonl")));
    std::string line;
    std::size_t count = 0;
    std::uint64_t complete = 0;
    double time = 0;
    int starts = 1;
    for (; std::getline(lines, line); ++count) {
      const auto json = nlohmann::json::parse(line);
      CHECK(json.at("rank") == rank);
      CHECK(json.at("time").get<double>() >= time);
      time = json.at("time").get<double>();
      const auto now = json.at("complete").get<std::uint64_t>();
      if (now < complete) ++starts;
      complete = now;
    }
    CHECK(count == figures.size());
    CHECK(starts == 2);
    CHECK(complete == 3);
  }
}

TEST_CASE("two processes of a rank append whole lines to one file, which others may read") {
  const TempDirectory directory;
  const auto file = directory.path() / "figures.r0.jsonl";
  std::ofstream(file) << R"({"rank":0})" << "\n" << R"({"ra)";  // its writer was killed
  std::filesystem::permissions(file, std::filesystem::perms::owner_all);
  InProcessJob jobs[2]{InProcessJob(1), InProcessJob(1)};  // the old process, and its replacement
  std::vector<std::unique_ptr<ms::Checkpointer>> processes;
  for (auto& job : jobs) {
    auto options = job.options(0);
    options.metrics = directory.path() / "figures.jsonl";
    processes.push_back(std::make_unique<ms::Checkpointer>(std::move(options)));
    (void)ms::test::recover_fresh(*processes.back());
  }
  for (const std::uint64_t step : {1, 2, 3}) {
    for (auto& process : processes) ms::test::stage_all(*process, {step});
  }
  processes.clear();
  std::istringstream lines(contents(file));
  std::string line;
  int whole = 0, torn = 0, last_ones = 0;
  while (std::getline(lines, line)) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    ++(json.is_discarded() ? torn : whole);
    if (!json.is_discarded() && json.value("complete", 0) == 4) ++last_ones;
  }
  CHECK(torn == 1);
  CHECK(whole >= 3);
  CHECK(last_ones >= 2);
  InProcessJob job(1);
  auto options = job.options(0);
  options.metrics = directory.path() / "readable.prom";
  {
    const ms::Checkpointer ckpt(options);
  }
  options = job.options(0);
  options.metrics = directory.path() / "readable.jsonl";
  {
    const ms::Checkpointer ckpt(options);
  }
  using Perms = std::filesystem::perms;
  const mode_t mask = ::umask(0);
  ::umask(mask);
  for (const char* name : {"readable.r0.prom", "readable.r0.jsonl"}) {
    const auto mode = std::filesystem::status(directory.path() / name).permissions();
    CHECK(((mode & Perms::others_read) != Perms::none) == ((mask & S_IROTH) == 0));
  }
}

TEST_CASE("Prometheus' file is kept up to date while the job runs") {
  const TempDirectory directory;
  InProcessJob job(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto options = job.options(rank);
    options.metrics = directory.path() / "meshstage.prom";
    std::promise<void> seen;
    options.on_stats = [&, found = false](const ms::Stats& stats) mutable {
      if (stats.complete == 3 && !std::exchange(found, true)) seen.set_value();
    };
    ms::Checkpointer ckpt(options);
    (void)ms::test::recover_fresh(ckpt);
    ms::test::stage_all(ckpt, {1, 2});
    ms::test::require(
        seen.get_future().wait_for(std::chrono::seconds(20)) == std::future_status::ready,
        "the figures of step 2 came");
    const std::string name = "meshstage.r" + std::to_string(rank) + ".prom";
    const std::string text = contents(directory.path() / name);
    ms::test::require(text.find("meshstage_complete_total{job=\"" + ckpt.job() + "\",rank=\"" +
                                std::to_string(rank) + "\"} 3\n") != std::string::npos,
                      "the file has them: " + text);
  }));
  CHECK(std::distance(std::filesystem::directory_iterator(directory.path()), {}) == 2);
}

TEST_CASE("figures that cannot be written or taken are reported once; the job goes on") {
  InProcessJob job(1);
  const TempDirectory directory;
  const auto folder = directory.path() / "monitoring";
  std::filesystem::create_directory(folder);
  auto options = job.options(0);
  options.metrics = folder / "m.prom";
  int calls = 0;
  options.on_stats = [&](const ms::Stats&) {
    ++calls;
    throw std::runtime_error("the collector is down");
  };
  std::filesystem::remove(folder);
  CHECK_THROWS_WITH(ms::Checkpointer(options),
                    contains_text("metrics: there is no folder " + folder.string()));
  std::filesystem::create_directory(folder);
  {
    ms::Checkpointer ckpt(options);
    // Renamed, not emptied: the writer may make a file there at any moment.
    std::filesystem::rename(folder, directory.path() / "gone");
    (void)ms::test::recover_fresh(ckpt);
    ms::test::stage_all(ckpt, {1, 2, 3});
    ckpt.finish();
  }
  CHECK(calls == 1);
  options.log = {};
  const std::string log = job.log();
  CHECK(times_in(log, "on_stats threw: the collector is down") == 1);
  CHECK(times_in(log, "metrics " + (folder / "m.r0.prom").string()) == 1);
  options.metrics = directory.path() / "m.txt";
  CHECK_THROWS_WITH(ms::Checkpointer(options), contains_text("must end in .jsonl"));
}

TEST_CASE("figures are one line of JSON, or Prometheus' text in a file that is whole") {
  ms::Stats stats;
  stats.complete = 12;
  stats.disk_step = 10;
  stats.stage_seconds = 0.5;
  stats.persist_seconds = 0.123456789;
  const ms::StatsLabels labels{"gpt2", 3, 2};
  const std::string json = ms::stats_json(stats, labels);
  CHECK_THAT(json, contains_text(R"({"job":"gpt2","rank":3,"generation":2,"complete":12,)") &&
                       contains_text(R"("disk_step":10,"stage_seconds":0.5,)"));
  CHECK(json.find('\n') == std::string::npos);
  const std::chrono::system_clock::time_point then(std::chrono::milliseconds(1'764'334'812'482));
  CHECK_THAT(ms::stats_json(stats, {"gpt2", 3, 2, then}),
             contains_text(R"({"time":1764334812.482,"job":"gpt2","rank":3,)"));
  CHECK(nlohmann::json::parse(json).at("persist_seconds") == 0.123456789);  // nothing is rounded
  const TempDirectory directory;
  const auto file = directory.path() / "meshstage-r3.prom";
  ms::write_stats_prometheus(file, stats, labels);
  const std::string text = contents(file);
  CHECK(text == ms::stats_prometheus(stats, labels));
  CHECK_THAT(text, contains_text("# TYPE meshstage_complete_total counter\n"
                                 "meshstage_complete_total{job=\"gpt2\",rank=\"3\"} 12\n") &&
                       contains_text("# TYPE meshstage_stage_seconds gauge\n"
                                     "meshstage_stage_seconds{job=\"gpt2\",rank=\"3\"} 0.5\n"));
  CHECK_THROWS_AS(ms::write_stats_prometheus(directory.path() / "none" / "x", stats, labels),
                  ms::Error);
}
