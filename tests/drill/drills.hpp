// Drills as a user types them, for tests: real processes, real signals, and nothing left behind.
#pragma once
#include <set>
#include <string>
#include <vector>

#include <meshstage/core/vault/listing.hpp>
#include <nlohmann/json.hpp>

#include "tests/drill/command_run.hpp"
#include "tests/support/catch.hpp"

namespace drill_runs {

using Words = std::vector<std::string>;

/// Jobs of drills whose vaults nobody owns any more: a drill may leave none. Those of a drill that
/// runs beside this test have owners.
inline std::set<std::string> vaults() {
  std::set<std::string> dead;
  std::set<std::string> living;
  for (const auto& vault : meshstage::list_vaults("/dev/shm")) {
    if (vault.job.rfind("drill-", 0) == 0) (vault.owner_alive ? living : dead).insert(vault.job);
  }
  for (const auto& job : living) dead.erase(job);
  return dead;
}

/// A short drill with these options, and further variables of its environment; checks that nothing
/// is left, whatever came of it.
inline Outcome drill(const TemporaryDirectory& directory, const Words& options,
                     const Words& environment = {}) {
  Words words{"drill", "--dir", directory.path(), "--timeout", "100"};
  words.insert(words.end(), options.begin(), options.end());
  const auto before = vaults();
  Outcome outcome = run(MESHSTAGE_COMMAND, words, std::chrono::seconds(240), environment);
  INFO("stderr: " << outcome.err << "\nstdout: " << outcome.out);
  CHECK_FALSE(outcome.timed_out);
  CHECK(processes_with(directory.path()).empty());
  CHECK(vaults() == before);
  CHECK(directory.entries().empty());
  return outcome;
}

/// The same with --json, which must be identical; its object.
inline nlohmann::json identical(const Words& options, const Words& environment = {}) {
  const TemporaryDirectory directory;
  Words words = options;
  words.emplace_back("--json");
  const Outcome outcome = drill(directory, words, environment);
  INFO("stderr: " << outcome.err << "\nstdout: " << outcome.out);
  REQUIRE(outcome.code == 0);
  CHECK(outcome.err.empty());
  nlohmann::json object = nlohmann::json::parse(outcome.out);  // one object and nothing else
  CHECK(object.at("identical") == true);
  return object;
}

}  // namespace drill_runs
