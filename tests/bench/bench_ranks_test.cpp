// The benchmarks whose ranks are processes.
#include <cmath>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/vault/listing.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/temp_directory.hpp"
#include "tools/bench/bench.hpp"

using namespace meshstage;
using namespace meshstage::tools;

namespace {

bench::Options small(const TempDirectory& directory) {
  bench::Options options;
  options.workload = "gpt2";
  options.scale = 0.01;
  options.repeat = 1;
  options.directory = directory.path() / "made";
  options.vault_directory = directory.path() / "vault";
  options.program = MESHSTAGE_COMMAND;
  return options;
}

void check(const bench::Result& result, const bench::Options& options) {
  CHECK(result.workload == "gpt2");
  CHECK(result.bytes > 10'000'000);
  CHECK(result.first_seconds > 0);
  CHECK(result.times.seconds.size() == 1);
  CHECK(result.limit.median() > 0);
  CHECK(result.connections > 0);
  CHECK(result.limit_connections > 0);
  CHECK_FALSE(std::filesystem::exists(options.directory));
  CHECK(list_vaults(options.vault_directory).empty());
}

}  // namespace

TEST_CASE("a step is replicated by processes, and nothing is left") {
  const TempDirectory directory;
  auto options = small(directory);
  std::string last;
  const auto result = bench::bench_replicate(options, [&](const auto& text) { last = text; });
  CHECK(result.what == "replicate");
  CHECK(result.parts.contains("limit: TCP"));
  CHECK(last == "round 1 of 1");
  check(result, options);
  options.ranks = 3;
  check(bench::bench_replicate(options, [](const auto&) {}), options);
}

TEST_CASE("a rank that lost its host is brought back by its holder") {
  const TempDirectory directory;
  const auto options = small(directory);
  const auto result = bench::bench_recover(options, [](const auto&) {});
  CHECK(result.what == "recover");
  CHECK(result.parts.contains("forming"));
  check(result, options);
}

TEST_CASE("a job goes on with another number of ranks, and only replicas travel in the limit") {
  const TempDirectory directory;
  auto options = small(directory);
  options.workload = "small";
  options.scale = 0.01;  // a rank has less than 1 MiB
  for (const auto& [from, to] : {std::pair{2, 1}, std::pair{1, 2}, std::pair{2, 3}}) {
    for (const bool files : {false, true}) {
      INFO(from << " to " << to << (files ? ", with files" : ""));
      options.from = from;
      options.to = to;
      options.files = files;
      std::string last;
      const auto result = bench::bench_reshard(options, [&](const auto& text) { last = text; });
      CHECK(result.what == "reshard");
      CHECK(last == "round 1 of 1");
      CHECK(result.bytes > 0);
      CHECK(result.times.median() > 0);
      CHECK(result.limit.median() > 0);
      CHECK(result.limit_threads > 0);
      CHECK((result.limit_connections > 0) == (to > 1));
      CHECK(result.parts.contains("limit: replicas") == (to > 1));
      CHECK(result.parts.contains("limit: prove") == files);
      double parts = 0;
      for (const auto* const part : {"look", "assemble", "stage", "vote"}) {
        CAPTURE(part);
        CHECK(result.parts.contains(part));
        parts += result.parts.at(part);
      }
      CHECK(std::abs(parts - result.times.median()) < 1e-6);  // of one round: nothing is left out
      for (const auto* const part : {"forming", "limit: copy", "limit: digest"}) {
        CHECK(result.parts.at(part) > 0);
      }
      CHECK(result.parts.contains("limit: first touch"));
      CHECK_FALSE(std::filesystem::exists(options.directory));
      CHECK(list_vaults(options.vault_directory).empty());
    }
  }
  options.to = options.from;
  try {
    static_cast<void>(bench::bench_reshard(options, [](const auto&) {}));
    FAIL("it did not throw");
  } catch (const InvalidArgument& e) {
    CHECK_THAT(e.what(), contains_text("--from 2 --to 2: the number of ranks must change"));
  }
}

TEST_CASE("a rank that fails ends the others, and its words are in the error") {
  const TempDirectory directory;
  auto options = small(directory);
  options.workload = "missing.safetensors";
  try {
    static_cast<void>(bench::bench_replicate(options, [](const auto&) {}));
    FAIL("it did not throw");
  } catch (const IoError& e) {
    CHECK_THAT(e.what(), contains_text("missing.safetensors"));
  }
  CHECK_FALSE(std::filesystem::exists(options.directory));
}
