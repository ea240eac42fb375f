// An example program that kills itself at a named point of the protocol: the example's train(),
// with an observer. usage: killed_NAME DIRECTORY STEPS [POINT PASS], where PASS counts from 1.
#include <sys/prctl.h>

#include <atomic>
#include <csignal>
#include <exception>
#include <iostream>
#include <string>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/points/points.hpp>

namespace ms = meshstage;
using namespace std::chrono_literals;

/// Of the example.
void train(ms::CheckpointerOptions options, std::uint64_t steps);

int main(int argc, char** argv) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const std::string directory = argv[1];
  ms::CheckpointerOptions options;
  options.job = "example";
  options.directory = directory + "/files";
  options.vault_directory = directory + "/vault";
  options.store = "file:" + directory + "/store";
  options.deadline = 20s;
  options.forming_deadline = 60s;
  options.block_bytes = 4096;
  std::atomic<int> left{argc > 4 ? std::stoi(argv[4]) : 0};
  if (argc > 4) {
    const auto point = ms::parse_point(argv[3]);
    if (!point) return 2;
    options.observer = [&left, at = *point](const ms::PointEvent& event) {
      if (event.point == at && --left == 0) std::raise(SIGKILL);
    };
  }
  try {
    train(std::move(options), std::stoull(argv[2]));
  } catch (const std::exception& e) {
    std::cerr << e.what() << "\n";
    return 1;
  }
  return left > 0 ? 3 : 0;  // the point was not passed so often
}
