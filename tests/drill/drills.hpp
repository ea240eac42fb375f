// Drills as a user types them, for tests: real processes, real signals, and nothing left behind.
#pragma once
#include <chrono>
#include <string>
#include <vector>

#include <meshstage/core/vault/listing.hpp>
#include <nlohmann/json.hpp>

#include "tests/drill/command_run.hpp"
#include "tests/support/catch.hpp"

namespace drill_runs {

using Words = std::vector<std::string>;

/// Vaults in shared memory of the job of that name.
inline std::vector<std::string> vaults_of(const std::string& job) {
  std::vector<std::string> found;
  for (const auto& vault : meshstage::list_vaults("/dev/shm")) {
    if (vault.job != job) continue;
    found.push_back(job + ", rank " + std::to_string(vault.rank) + ", incarnation " +
                    std::to_string(vault.incarnation));
  }
  return found;
}

/// Runs the command with its files below `directory`, and checks that no process, no vault of its
/// jobs and no file is left, whatever came of it. Drills that run beside it are no matter.
inline Outcome clean_run(const TemporaryDirectory& directory, const Words& words,
                         std::chrono::seconds limit, const Words& environment = {},
                         const std::string& interrupt_when = {}) {
  const CreatedNames names(directory.path());
  Outcome outcome = run(MESHSTAGE_COMMAND, words, limit, environment, interrupt_when);
  INFO("stderr: " << outcome.err << "\nstdout: " << outcome.out);
  CHECK_FALSE(outcome.timed_out);
  CHECK(processes_with(directory.path()).empty());
  for (const auto& job : names.read()) CHECK(vaults_of(job) == std::vector<std::string>());
  CHECK(directory.entries().empty());
  return outcome;
}

/// A short drill with these options, and further variables of its environment.
inline Outcome drill(const TemporaryDirectory& directory, const Words& options,
                     const Words& environment = {}) {
  Words words{"drill", "--dir", directory.path(), "--timeout", "100"};
  words.insert(words.end(), options.begin(), options.end());
  return clean_run(directory, words, std::chrono::seconds(240), environment);
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
