#include "tools/snapshot/doctor.hpp"

#include <cstdlib>
#include <functional>
#include <memory>

#include <meshstage/core/comm/tcp_store/server.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/snapshot/snapshot_support.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::test;
using namespace meshstage::tools;
using Level = Check::Level;

namespace {

constexpr std::uint64_t kGiB = std::uint64_t{1} << 30U;

HostFacts healthy() {
  HostFacts f;
  f.room.memory.mem_available = 20 * kGiB;
  f.room.space = {.available = 12 * kGiB, .total = 12 * kGiB, .in_memory = true};
  f.room.directory = "/dev/shm";
  f.memory_total = 24 * kGiB;
  f.vault_exists = f.vault_writable = true;
  f.huge_pages = "madvise";
  f.shared_huge_pages = "always";
  f.memlock_soft = f.memlock_hard = HostFacts::kUnlimited;
  f.files_soft = f.files_hard = 65536;
  f.own_address = "10.0.0.7";
  f.uid = 1000;
  return f;
}

}  // namespace

TEST_CASE("doctor finds nothing wrong with a healthy host") {
  for (const auto& check : diagnose(healthy(), {.state_bytes = kGiB, .ranks = 2})) {
    INFO(check.name << ": " << check.text);
    REQUIRE(check.level == Level::kOk);
    REQUIRE(check.remedy.empty());
  }
}

TEST_CASE("doctor names each thing that is wrong, with its remedy") {
  struct Row {
    const char* name;
    Level level;
    std::function<void(HostFacts&)> spoil;
    const char* text;
    const char* remedy;
  };
  const std::vector<Row> rows{
      {"memory", Level::kWarning, [](auto& f) { f.room.memory.mem_available = kGiB; }, "1.00 GiB",
       "four times"},
      {"control group", Level::kWarning,
       [](auto& f) {
         f.room.memory.cgroup_headroom = kGiB;
         f.room.memory.cgroup = "/sys/fs/cgroup/job";
       },
       "1.00 GiB of memory left to /sys/fs/cgroup/job", "docker run --memory"},
      {"shared memory", Level::kWarning,
       [](auto& f) { f.room.space = {64U << 20U, 64U << 20U, true}; }, "64.0 MiB", "--shm-size"},
      {"shared memory", Level::kProblem, [](auto& f) { f.vault_exists = false; }, "does not exist",
       "mount"},
      {"shared memory", Level::kProblem,
       [](auto& f) {
         f.vault_exists = false;
         f.vault_is_other = true;
       },
       "is not a directory", "name a directory"},
      {"shared memory", Level::kProblem, [](auto& f) { f.vault_writable = false; }, "not writable",
       "right to write"},
      {"vault", Level::kWarning,
       [](auto& f) {
         f.room.directory = "/var/tmp";
         f.room.space.in_memory = false;
       },
       "on a disk", "tmpfs"},
      {"room", Level::kProblem, [](auto& f) { f.room.space = {4 * kGiB, 4 * kGiB, true}; },
       "2 ranks of 1.00 GiB state need 8.00 GiB", "/dev/shm"},
      {"huge pages", Level::kWarning, [](auto& f) { f.huge_pages = "never"; }, "never",
       "echo madvise"},
      {"huge pages", Level::kOk, [](auto& f) { f.shared_huge_pages = "never"; }, "never",
       "huge=always"},
      {"locked memory", Level::kOk, [](auto& f) { f.memlock_soft = 65536; }, "64.0 KiB",
       "ulimit -l"},
      {"open files", Level::kWarning,
       [](auto& f) {
         f.files_soft = 256;
         f.files_hard = 4096;
       },
       "256 (at most 4096)", "ulimit -n 4096"},
      {"file size", Level::kProblem, [](auto& f) { f.file_size_soft = 1000; }, "1000 B",
       "ulimit -f"},
      {"logout", Level::kWarning, [](auto& f) { f.logind = true; }, "logind", "RemoveIPC=no"},
      {"leftovers", Level::kWarning,
       [](auto& f) {
         f.dead_vaults = 3;
         f.dead_vault_bytes = kGiB;
       },
       "3 vaults of 1.00 GiB", "meshstage clean"},
      {"environment", Level::kProblem, [](auto& f) { f.environment["RANK"] = "1"; }, "WORLD_SIZE",
       "unset"},
      {"environment", Level::kProblem, [](auto& f) { f.environment["MESHSTAGE_JOB"] = "a b"; },
       "no job name", "characters"},
      {"store", Level::kWarning,
       [](auto& f) {
         f.environment = {
             {"RANK", "0"}, {"WORLD_SIZE", "8"}, {"LOCAL_RANK", "0"}, {"LOCAL_WORLD_SIZE", "4"}};
       },
       "are on several hosts", "meshstage store"},
      {"store", Level::kWarning,
       [](auto& f) { f.environment = {{"RANK", "0"}, {"WORLD_SIZE", "8"}}; },
       "may be on several hosts", "meshstage store"},
      {"environment", Level::kWarning,
       [](auto& f) { f.environment = {{"RANK", "0"}, {"WORLD_SIZE", "8"}}; },
       "on how many hosts they are is not said", "MESHSTAGE_HOST"},
      {"host", Level::kProblem,
       [](auto& f) {
         f.environment["MESHSTAGE_HOST"] = "node9";
         f.host_error = "the host node9 has no address here";
       },
       "MESHSTAGE_HOST=node9 cannot be used", "has no address here"},
      {"host", Level::kWarning, [](auto& f) { f.host_error = "set MESHSTAGE_HOST"; },
       "other hosts cannot reach this one; ranks of one host need no address", "MESHSTAGE_HOST"},
      {"host", Level::kProblem,
       [](auto& f) {
         f.environment = {{"RANK", "0"}, {"WORLD_SIZE", "8"}};
         f.host_error = "set MESHSTAGE_HOST";
       },
       "other hosts cannot reach this one", "MESHSTAGE_HOST"},
      {"store", Level::kProblem,
       [](auto& f) {
         f.environment["MESHSTAGE_STORE"] = "127.0.0.1:29500";
         f.store_error = "names no store; supported: tcp://host:port";
       },
       "MESHSTAGE_STORE=127.0.0.1:29500 cannot be used", "tcp://host:port"},
      {"store", Level::kWarning,
       [](auto& f) {
         f.environment["MESHSTAGE_STORE"] = "redis://me:secret@host:1";
         f.store_error = "no store answers";
         f.store_silent = true;
       },
       "redis://...@host:1 does not answer", "no store answers"},
      {"environment", Level::kWarning, [](auto& f) { f.environment["MESHSTAGE_RANKS"] = "4"; },
       "MESHSTAGE_RANKS is set, but means nothing", "MESHSTAGE_WORLD_SIZE"},
  };
  for (const auto& row : rows) {
    auto facts = healthy();
    row.spoil(facts);
    bool found = false;
    std::string all;
    for (const auto& check : diagnose(facts, {.state_bytes = kGiB, .ranks = 2})) {
      all += check.name + ": " + check.text + " -> " + check.remedy + "\n";
      found |= check.name == row.name && check.level == row.level &&
               contains(check.text, row.text) && contains(check.remedy, row.remedy);
    }
    INFO(row.name << ", " << row.text << ":\n" << all);
    REQUIRE(found);
  }
}

TEST_CASE("a user whom logind leaves alone, or who said so, gets no warning about logout") {
  auto facts = healthy();
  facts.logind = true;
  facts.remove_ipc = false;
  for (const auto& check : diagnose(facts, {})) REQUIRE(check.level == Level::kOk);
  facts.remove_ipc.reset();
  facts.uid = 0;
  for (const auto& check : diagnose(facts, {})) REQUIRE(check.level == Level::kOk);
}

TEST_CASE("doctor asks the store whether it answers") {
  const TempDirectory temp;
  const auto store_of = [&](const std::string& address) {
    ::setenv("MESHSTAGE_STORE", address.c_str(), 1);
    const auto answer = run({"doctor", "--vault", temp.path().string(), "--json"}).json();
    ::unsetenv("MESHSTAGE_STORE");
    for (const auto& check : answer.at("checks")) {
      if (check.at("name") == "store") return check;
    }
    throw NotFound("doctor said nothing of the store");
  };
  auto server = std::make_unique<StoreServer>(StoreServerOptions{});
  const std::string address = server->address();
  const auto answers = store_of(address);
  CHECK(answers.at("level") == "ok");
  CHECK(answers.at("found") == address + " answers");
  server.reset();
  const auto silent = store_of(address);
  CHECK(silent.at("level") == "warning");
  CHECK(silent.at("found") == address + " does not answer from here");
  CHECK(contains(silent.at("remedy"), "meshstage store --listen " + address.substr(6)));
  const auto wrong = store_of("tcp://10.0.0.300:1");
  CHECK(wrong.at("level") == "problem");
  CHECK(contains(wrong.at("remedy"), "names no store"));
}

TEST_CASE("doctor finds a host that the other ranks could not reach") {
  const TempDirectory temp;
  const auto host_of = [&](const std::string& host) {
    ::setenv("MESHSTAGE_HOST", host.c_str(), 1);
    const auto answer = run({"doctor", "--vault", temp.path().string(), "--json"}).json();
    ::unsetenv("MESHSTAGE_HOST");
    for (const auto& check : answer.at("checks")) {
      if (check.at("name") == "host") return check;
    }
    throw NotFound("doctor said nothing of the host");
  };
  CHECK(host_of("[::1]").at("level") == "ok");
  for (const char* host : {"nobody.invalid", "12"}) {
    INFO(host);
    const auto answer = host_of(host);
    CHECK(answer.at("level") == "problem");
    CHECK(answer.at("found") == "MESHSTAGE_HOST=" + std::string(host) + " cannot be used");
    CHECK(contains(answer.at("remedy"), "at which the other ranks reach this host"));
  }
}

TEST_CASE("doctor and info run on this host and print JSON") {
  const TempDirectory temp;
  const auto doctor = run({"doctor", "--vault", temp.path().string(), "--json"});
  REQUIRE(doctor.err.empty());
  REQUIRE(doctor.json().at("checks").size() >= 9);
  REQUIRE(doctor.code == (doctor.json().at("problems") == 0 ? 0 : 1));
  const auto missing = run({"doctor", "--vault", (temp.path() / "none").string()});
  REQUIRE(missing.code == 1);
  REQUIRE(contains(missing.out, "does not exist"));
  REQUIRE(run({"doctor", "--state", "1PiB"}).code == 1);

  const auto info = run({"info", "--json"}).json();
  REQUIRE(info.at("version").get<std::string>().find('.') != std::string::npos);
  REQUIRE(info.at("backends")[0].at("name") == "gloo");
  const bool found = info.at("backends")[0].at("found");
  REQUIRE(info.at("backends")[2].at("name") == "cuda");
  REQUIRE(info.at("backends")[2].at("found").get<bool>() != info.at("devices").empty());
  REQUIRE(info.at("backends")[1].at("name") == "redis");
  REQUIRE(found == info.at("backends")[0].at("detail").get<std::string>().empty());
  REQUIRE(info.at("cpu").contains("digests"));
}
