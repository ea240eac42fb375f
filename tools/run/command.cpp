#include "tools/run/command.hpp"

#include <sched.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <memory>
#include <random>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/os/environment.hpp>

#include "tools/command/command.hpp"
#include "tools/run/launcher.hpp"

namespace meshstage::tools {
namespace {

using run::LaunchOptions;
using run::RestartPolicy;

constexpr std::uint16_t kMasterPort = 29'500;  // where several hosts must know it: torchrun's

struct Arguments {
  int ranks = 0;
  std::string restart = "alone";
  std::uint64_t max_restarts = 0;
  CLI::Option* max_restarts_option = nullptr;
  std::string hosts, this_host, job, store;
  std::uint16_t master_port = 0;
  std::uint64_t grace = 30;
  std::uint64_t hung_after = 30, away_after = 0;
  bool raw = false;
  std::vector<std::string> command;
};

std::string own_host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) throw_errno("gethostname", "", errno);
  return name.data();
}

int allowed_processors() {
  cpu_set_t set;
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

run::Place place(const Arguments& a) {
  if (a.hosts.empty()) {
    if (a.ranks < 1) throw InvalidArgument("-n RANKS or --hosts FILE is needed");
    if (!a.this_host.empty()) throw InvalidArgument("--this goes with --hosts");
    run::Place one;
    one.ranks = one.world_size = a.ranks;
    return one;
  }
  if (a.ranks != 0)
    throw InvalidArgument("-n and --hosts exclude each other: the file says how many");
  const auto hosts = run::read_hosts(a.hosts);
  return run::place_of(hosts, a.this_host.empty() ? own_host_name() : a.this_host);
}

// A name that no other run has.
std::string drawn_name() {
  return "run-" + std::to_string(::getpid()) + "-" + std::to_string(std::random_device{}());
}

// The user's, else one that no other run has.
std::string job_of(const Arguments& a, const run::Place& place) {
  if (!a.job.empty()) return a.job;
  std::string inherited = environment_variable("MESHSTAGE_JOB").value_or("");
  if (!inherited.empty()) return inherited;
  if (place.hosts > 1) {
    throw InvalidArgument("ranks on several hosts need a job id that all share: --job NAME");
  }
  const std::string drawn = drawn_name();
  run::write_message(
      "no job id was given, so MESHSTAGE_JOB is " + drawn +
      "; a later run that is to go on where this one ends needs the same --job NAME");
  return drawn;
}

LaunchOptions launch_options(const Arguments& a) {
  LaunchOptions options;
  options.launch.place = place(a);
  const run::Place& here = options.launch.place;
  options.launch.store =
      a.store.empty() ? environment_variable("MESHSTAGE_STORE").value_or("") : a.store;
  if (here.hosts > 1 && options.launch.store.empty()) {
    throw InvalidArgument(
        "ranks on several hosts need a Store that all reach: --store tcp://HOST:PORT (`meshstage "
        "store` serves one), redis://HOST or a shared folder");
  }
  // Better refused here than by every rank, three times.
  if (!options.launch.store.empty()) (void)open_store(options.launch.store);
  options.launch.job = job_of(a, here);
  if (!is_valid_job_name(options.launch.job)) {
    throw InvalidArgument("job id \"" + options.launch.job +
                          "\": [A-Za-z0-9._-]{1,64} is needed (--job, or MESHSTAGE_JOB)");
  }
  // The launchers of several hosts could not agree on one.
  if (here.hosts == 1) options.launch.name = drawn_name();
  options.launch.processors = allowed_processors();
  options.keep_master_port = a.master_port != 0 || here.hosts > 1;
  options.launch.master_port = a.master_port != 0 ? a.master_port : kMasterPort;
  options.rules.ranks = here.ranks;
  options.rules.policy = a.restart == "all" ? RestartPolicy::kAll : RestartPolicy::kAlone;
  if (options.rules.policy == RestartPolicy::kAll && here.hosts > 1) {
    throw InvalidArgument(
        "--restart all ends the ranks of one host only, so with several hosts use --restart alone");
  }
  if (a.max_restarts_option->count() > 0) options.rules.max_restarts = a.max_restarts;
  const auto length = [](std::uint64_t seconds) {
    return std::chrono::duration_cast<std::chrono::milliseconds>(
        Deadline::length(std::chrono::duration<std::uint64_t>(seconds)));
  };
  options.grace = length(a.grace);
  const auto unless_zero = [&](std::uint64_t seconds) {
    return seconds == 0 ? std::nullopt : std::optional(length(seconds));
  };
  options.hang_rules = {unless_zero(a.hung_after), unless_zero(a.away_after)};
  options.prefix = !a.raw;
  options.command = a.command;
  return options;
}

}  // namespace

void add_run_command(CLI::App& app) {
  auto* command = app.add_subcommand(
      "run",
      "Start the ranks of a job on this host, and start a rank anew when it dies. The other ranks "
      "stay up, notice the death, and go on with the new one from the newest complete step. Each "
      "rank gets MESHSTAGE_RANK and its like, and torchrun's variables (RANK, LOCAL_RANK, "
      "WORLD_SIZE, LOCAL_WORLD_SIZE, GROUP_RANK, MASTER_ADDR, MASTER_PORT, OMP_NUM_THREADS). A "
      "rank that ends "
      "with 0 has finished. A rank that ends with 75 asks for a restart of all ranks. A rank that "
      "dies three times in a row before it has joined the job ends the job. Exit code: 0 if every "
      "rank ended with 0, else the code of the rank that ended the job (128 + N for signal N).");
  auto a = std::make_shared<Arguments>();
  command->add_option("-n,--ranks", a->ranks, "Ranks to start, all on this host")
      ->check(CLI::Range(1, 65'536));
  command
      ->add_option("--restart", a->restart,
                   "Which ranks are started anew after a death: the dead rank alone, or all (for "
                   "programs that do not rejoin)")
      ->check(CLI::IsMember({"alone", "all"}))
      ->capture_default_str();
  a->max_restarts_option =
      command
          ->add_option("--max-restarts", a->max_restarts,
                       "End the job at the next death after so many restarts (default: no limit)")
          ->check(whole_number());
  command->add_option("--job", a->job,
                      "Job id, MESHSTAGE_JOB; a later run with the same id goes on where this one "
                      "ended (default: the variable, else a new id)");
  command->add_option(
      "--store", a->store,
      "The Store where the ranks meet, MESHSTAGE_STORE (default: the variable, else the "
      "program's folder)");
  command
      ->add_option("--hosts", a->hosts,
                   "File with a line NAME RANKS for each host; run this command on each of them")
      ->type_name("FILE");
  command->add_option("--this", a->this_host, "This host's name in that file (default: its own)")
      ->type_name("NAME");
  command
      ->add_option("--master-port", a->master_port,
                   "MASTER_PORT (default: a free one at each start of all ranks; with --hosts "
                   "29500)")
      ->check(CLI::Range(1, 65'535));
  command
      ->add_option("--grace", a->grace,
                   "Seconds from SIGTERM to SIGKILL where this command ends ranks")
      ->check(whole_number())
      ->capture_default_str();
  command
      ->add_option("--hung-after", a->hung_after,
                   "Kill a rank, and start it anew, if its process gives no sign of life for so "
                   "many seconds while others wait for it; a rank that is slow, or in a long step, "
                   "gives signs (0: never; at least 5)")
      ->check(whole_number())
      ->capture_default_str();
  command
      ->add_option("--away-after", a->away_after,
                   "The same for a rank whose process gives signs, but whose trainer does not come "
                   "to the others: it may hang, or be in a long step (0: never)")
      ->check(whole_number())
      ->capture_default_str();
  command->add_flag("--raw", a->raw, "Do not begin each line of output with its rank");
  command->add_option("program", a->command, "Behind --: the program and its arguments")
      ->required()
      ->expected(1, -1);
  set_example(*command, "meshstage run -n 4 --job gpt2 -- ./trainer --steps 1000");
  command->callback([a] {
    Signals signals({SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2});
    ::signal(SIGPIPE, SIG_IGN);  // a reader of the output that went away is no reason to end a job
    const int status = run::Launcher(launch_options(*a), signals).run();
    if (status != 0) throw CLI::RuntimeError(status);
  });
}

}  // namespace meshstage::tools
