// Ranks that are shell scripts, under `meshstage run`.
#pragma once
#include <chrono>
#include <csignal>
#include <cstddef>
#include <fstream>
#include <string>
#include <vector>

#include "tests/drill/command_run.hpp"

namespace run_tests {

/// Runs `script` in sh as the program of `options`; $D is a fresh folder. Once a rank has printed
/// `signal_when`, the command gets `signal`.
struct Run {
  drill_runs::TemporaryDirectory folder;
  drill_runs::Outcome go(std::vector<std::string> options, const std::string& script,
                         const std::string& signal_when = {}, int signal = SIGINT) {
    options.insert(options.begin(), "run");
    for (const char* word : {"--", "sh", "-c"}) options.emplace_back(word);
    options.push_back(script);
    return drill_runs::run(MESHSTAGE_COMMAND, options, std::chrono::seconds(60),
                           {"D=" + folder.path().string()}, signal_when, signal);
  }
  [[nodiscard]] bool has(const std::string& name) const {
    return std::filesystem::exists(folder.path() / name);
  }
  [[nodiscard]] std::size_t lines(const std::string& name) const {
    std::ifstream in(folder.path() / name);
    std::size_t count = 0;
    for (std::string line; std::getline(in, line); ++count) {
    }
    return count;
  }
};

}  // namespace run_tests
