#include "tools/bench/command.hpp"

#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>
#include <iostream>
#include <memory>
#include <ostream>
#include <tuple>

#include <meshstage/core/error/error.hpp>

#include "tools/bench/bench.hpp"
#include "tools/bench/locker.hpp"
#include "tools/command/command.hpp"

namespace meshstage::tools {
namespace {

using bench::Options;
using Bench = bench::Result (*)(const Options&, const bench::Progress&);

// What the processes of ranks are started with.
struct RankArguments {
  int rank = -1, report = -1;
  long parent = 0;
  std::string meet;
};

struct Parsed {
  Options options;
  RankArguments of_rank;
  bool json = false;
};

// One line on a terminal, drawn over.
class Line {
 public:
  void show(const std::string& text) {
    if (::isatty(STDERR_FILENO) == 0) return;
    std::cerr << "\r\033[K" << text << std::flush;
    shown_ = true;
  }
  ~Line() {
    if (shown_) std::cerr << "\r\033[K" << std::flush;
  }
  Line() = default;
  Line(const Line&) = delete;
  Line& operator=(const Line&) = delete;

 private:
  bool shown_ = false;
};

void run(const std::string& what, Bench measure, const Parsed& parsed, std::ostream& out) {
  if (parsed.of_rank.rank >= 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parsed.of_rank.parent) throw CLI::RuntimeError(1);
    if (what == "launch" || what == "notice") {
      bench::run_locker(what, parsed.of_rank.report, parsed.of_rank.meet, parsed.options);
    } else {
      bench::run_rank(what, parsed.of_rank.rank, parsed.of_rank.report, parsed.of_rank.meet,
                      parsed.options);
    }
    return;
  }
  bench::Result result;
  {
    Line line;
    result = measure(parsed.options,
                     [&](const std::string& text) { line.show("bench " + what + ": " + text); });
  }
  out << (parsed.json ? bench::to_json(result) + "\n" : bench::to_text(result));
}

constexpr const char* kDeviceHelp =
    "Where the state lives: cpu, cuda or cuda:1. Staged, sent and recovered are tensors of the "
    "device; between rounds the host changes copies of them. Ranks share the devices";

enum class With : std::uint8_t {
  kNothing,
  kDevice,
  kRanks,     // and a device
  kTwoWorlds  // an old job and a new one
};

// What the processes that a bench starts are told.
void add_hidden(CLI::App& command, RankArguments& of_rank) {
  for (auto* hidden :
       {command.add_option("--rank", of_rank.rank), command.add_option("--report", of_rank.report),
        command.add_option("--parent", of_rank.parent),
        command.add_option("--meet", of_rank.meet)}) {
    hidden->group("");
  }
}

// A bench of page-locking: it has no workload.
void add_page_locks(CLI::App& bench, const std::string& what, const char* description,
                    Bench measure, std::uint64_t bytes, int repeat, std::ostream& out) {
  auto parsed = std::make_shared<Parsed>();
  auto* command = bench.add_subcommand(what, description);
  auto& options = parsed->options;
  options.device = "cuda";
  options.lock_bytes = bytes;
  options.repeat = repeat;
  command->add_option("--device", options.device, "cuda or cuda:1")->capture_default_str();
  command->add_option("--lock", options.lock_bytes, "Bytes to page-lock")
      ->check(whole_number())
      ->capture_default_str();
  if (what == "launch") {
    command
        ->add_option("--piece", options.piece_bytes,
                     "Bytes to lock by a call of their own, in whole pages; 0: all by one call, "
                     "which cuts them itself")
        ->check(whole_number());
  }
  command->add_option("--repeat", options.repeat, "How often")
      ->check(whole_number() & CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--vault", options.vault_directory, "Where memory of vaults is")
      ->capture_default_str();
  command->add_option("--dir", options.directory, "Where files go [the temporary directory]");
  add_hidden(*command, parsed->of_rank);
  command->add_flag("--json", parsed->json, "One line of JSON");
  set_example(*command, "meshstage bench " + what + " --lock 4000000000");
  command->callback([what, measure, parsed, &out] {
    if (parsed->options.device == "cpu")
      throw InvalidArgument("--device cpu: memory is page-locked for a device; write cuda");
    run(what, measure, *parsed, out);
  });
}

void add(CLI::App& bench, const std::string& what, const char* description, Bench measure,
         With with, std::ostream& out) {
  auto parsed = std::make_shared<Parsed>();
  auto* command = bench.add_subcommand(what, description);
  auto& options = parsed->options;
  const bool worlds = with == With::kTwoWorlds;
  if (worlds) options.repeat = 3;
  command
      ->add_option("--workload", options.workload,
                   std::string(worlds ? "The whole state, cut over the ranks: " : "The state: ") +
                       bench::kWorkloads)
      ->capture_default_str();
  command->add_option("--scale", options.scale, "Fraction of the workload's bytes, 0.0001 to 1")
      ->check(CLI::Range(0.0001, 1.0))
      ->capture_default_str();
  if (worlds) {
    for (const auto& [name, number, of] :
         {std::tuple{"--from", &options.from, "Ranks of the old job"},
          std::tuple{"--to", &options.to, "Ranks of the new job"}}) {
      command->add_option(name, *number, of)
          ->check(whole_number() & CLI::Range(1, 64))
          ->capture_default_str();
    }
    command->add_flag(
        "--files", options.files,
        "The old job wrote the step to disk; without it recover() writes its images there");
  } else {
    command->add_option("--changed", options.changed, "Fraction that changes from step to step")
        ->check(CLI::Range(0.0, 1.0))
        ->capture_default_str();
  }
  command->add_option("--threads", options.threads, "Threads that copy; 0: by the processors")
      ->check(whole_number() & CLI::Range(0, 256))
      ->capture_default_str();
  command->add_option("--repeat", options.repeat, "Rounds after the first one")
      ->check(whole_number() & CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--dir", options.directory, "Where files go [the temporary directory]");
  if (with == With::kDevice || with == With::kRanks) {
    command->add_option("--device", options.device, kDeviceHelp)->capture_default_str();
    command->add_flag("--snapshot", options.snapshot,
                      "Copy inside the device first, and let the trainer go on");
  }
  if (with == With::kRanks) {
    command->add_option("--ranks", options.ranks, "Processes on this host, each a rank")
        ->check(whole_number() & CLI::Range(2, 64))
        ->capture_default_str();
    command
        ->add_option("--connections", options.connections,
                     "Connections of a pair of ranks for images; 0: by the processors")
        ->check(whole_number() & CLI::Range(0, 16))
        ->capture_default_str();
  }
  if (with == With::kRanks || worlds) {
    command->add_option("--vault", options.vault_directory, "Where host memory is")
        ->capture_default_str();
    add_hidden(*command, parsed->of_rank);
  }
  command->add_flag("--json", parsed->json, "One line of JSON");
  set_example(*command, "meshstage bench " + what + " --workload gpt2-half " +
                            (worlds ? "--from 2 --to 1" : "--repeat 5") + " --json");
  command->callback([what, measure, parsed, &out] { run(what, measure, *parsed, out); });
}

}  // namespace

void add_bench_command(CLI::App& app, std::ostream& out) {
  auto* command = app.add_subcommand(
      "bench", "Measure the speed of checkpoints on this machine, and its limit");
  command->require_subcommand(1);
  add(*command, "stage", "Copy a state to host memory, against one copy of as many bytes",
      bench::bench_stage, With::kDevice, out);
  add(*command, "replicate", "Stage and replicate a step, against a copy, digests and raw TCP",
      bench::bench_replicate, With::kRanks, out);
  add(*command, "recover", "Bring a lost rank's state back from its holder, against raw TCP",
      bench::bench_recover, With::kRanks, out);
  add(*command, "reshard",
      "Go on with another number of ranks, against copies, digests and raw TCP",
      bench::bench_reshard, With::kTwoWorlds, out);
  add(*command, "persist", "Publish an image as a file, against one plain write and sync",
      bench::bench_persist, With::kNothing, out);
  add_page_locks(*command, "launch", "Launch kernels while memory is page-locked for a device",
                 bench::bench_launch, std::uint64_t{4} << 30U, 3, out);
  add_page_locks(*command, "notice", "Kill a process that has page-locked memory, and wait for it",
                 bench::bench_notice, std::uint64_t{20} << 30U, 1, out);
}

}  // namespace meshstage::tools
