// meshstage-trainer: an example of a training program that uses meshstage. See README.md.
#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <exception>

#include <CLI/CLI.hpp>

#include <meshstage/dtensor/borrowed_tensors.hpp>
#include <meshstage/mesh/partners.hpp>

#include "tools/trainer/training.hpp"

namespace {

constexpr int kOk = 0;
constexpr int kFailed = 1;
constexpr int kWrongUse = 2;
constexpr int kFenced = 4;

constexpr const char* kFooter =
    "Ranks find each other by the variables of torchrun, mpirun, srun, or MESHSTAGE_RANK and\n"
    "MESHSTAGE_WORLD_SIZE. Start a job again with the same --job and it goes on where it was.\n"
    "With --device cuda parameters, moments and losses live in a device's memory, and are staged,\n"
    "replicated, written to disk and recovered from there and into it. The numbers are computed "
    "on\n"
    "the host: each step copies the tensors from the device and back. With --collectives nccl\n"
    "it copies the gradient to the device, averages it there over NCCL, and copies it back.\n"
    "Exit code: 0 trained, 1 could not go on, 2 wrong use, 3 the device or NCCL cannot be used,\n"
    "4 fenced (replaced by another process).\n"
    "Example:\n"
    "  mpirun -n 4 meshstage-trainer --job example --steps 200 --text book.txt";

struct Command {
  trainer::TrainingOptions training;
  std::vector<std::string> faults, holds;
  std::uint64_t deadline_ms = 30'000;
  std::uint64_t forming_ms = 300'000;
  std::uint64_t block_kib = 4096;
  long parent = 0;
  std::string partners, device = "cpu", collectives = "host";
  bool borrow = false;
  bool any_world = false;
  int copies = 1;
  int ranks_per_host = 1;

  void add_to(CLI::App& app) {
    auto& t = training;
    auto& c = training.checkpoint;
    const auto group = [](CLI::Option* option, const char* name) { option->group(name); };
    app.add_option("--text", t.text, "Text to learn (default: the licence of this project)");
    app.add_option("--steps", t.steps, "Steps to train")
        ->capture_default_str()
        ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1'000'000}));
    app.add_option("--every", t.every, "Stage after every n-th step; 0: never")
        ->capture_default_str();
    app.add_option("--batch", t.batch, "Examples for each rank and step")
        ->capture_default_str()
        ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{65'536}));
    app.add_option("--seed", t.seed, "Chooses first parameters and examples")
        ->capture_default_str();
    app.add_option("--mesh", t.mesh,
                   "Cut the optimizer's moments over a mesh of this shape, 2,2 for example: along "
                   "its last dimension, repeated along the others")
        ->delimiter(',');
    app.add_flag(
        "--borrow-replicated", borrow,
        "With --mesh: copies borrow what the mesh repeats on another host; a lost rank gets it "
        "from there");
    app.add_option("--device", device,
                   "Where the state lives: cpu, cuda (devices by the rank on its host), cuda:1; "
                   "computing stays on the host")
        ->capture_default_str();
    app.add_option("--collectives", collectives,
                   "How gradients are averaged: host, or nccl: over NCCL in the memory of --device")
        ->capture_default_str();
    app.add_option("--until", t.until, "End after this step; 0: after the last")
        ->capture_default_str();
    app.add_option(
        "--load", t.load,
        "Begin with the state that rank 0 saved (--save) in a job without a mesh, of any number "
        "of ranks");
    app.add_option(
        "--load-own", t.load_own,
        "With --load: the file this rank saved, for the values that each rank has of its own");
    app.add_option("--save", t.save, "Write the final state to this file (safetensors)");
    app.add_flag("--quiet", t.quiet, "Print nothing but errors");
    group(app.add_option("--job", c.job, "Name of the job; needed to go on after all ranks died"),
          "Checkpoints");
    group(app.add_option("--dir", c.directory, "Where complete steps are written to disk"),
          "Checkpoints");
    group(app.add_option("--vault", c.vault_directory, "Where the images live (a tmpfs)")
              ->capture_default_str(),
          "Checkpoints");
    group(app.add_option("--store", c.store, "Where ranks meet: file:/shared/directory"),
          "Checkpoints");
    group(app.add_option("--persist-every", c.persist_every,
                         "Every n-th complete staged step goes to disk; 0: never")
              ->capture_default_str(),
          "Checkpoints");
    group(app.add_flag("--any-world", any_world,
                       "Go on from a step that another number of ranks left in --vault or --dir"),
          "Checkpoints");
    group(app.add_option("--trace", c.trace,
                         "Write a trace of each rank, for ui.perfetto.dev: trace.json "
                         "becomes trace.r0.json and so on"),
          "Checkpoints");
    group(app.add_option("--deadline-ms", deadline_ms, "A silent peer counts as dead after this")
              ->capture_default_str(),
          "Checkpoints");
    group(app.add_option("--forming-ms", forming_ms, "How long to wait for all ranks")
              ->capture_default_str(),
          "Checkpoints");
    group(app.add_option("--block-kib", block_kib, "Unit of digests and transfer; a multiple of 4")
              ->capture_default_str(),
          "Checkpoints");
    group(app.add_option(
                 "--connections", c.connections,
                 "Connections to each rank with which images are exchanged, at most 16; 0: by the "
                 "processors")
              ->capture_default_str()
              ->check(CLI::Range(0, 16)),
          "Checkpoints");
    group(app.add_option("--copies", copies, "Ranks that hold a copy of each rank's images")
              ->capture_default_str(),
          "Checkpoints");
    group(app.add_option(
              "--partners", partners,
              "How they are chosen: half-shift (the default), ring, across-hosts, cliques"),
          "Checkpoints");
    group(app.add_option("--ranks-per-host", ranks_per_host,
                         "This many neighbouring ranks share a host, for --partners")
              ->capture_default_str()
              ->check(CLI::Range(1, 1'000'000)),
          "Checkpoints");
    group(app.add_option("--fault", faults,
                         "Kill or stop this process: kill@STEP as it begins to train STEP, "
                         "kill@STEP:POINT when it passes that protocol point from then on, "
                         "stop@STEP; repeatable"),
          "Trying out faults");
    group(app.add_option("--hold", holds,
                         "STEP:FILE: as it begins STEP, keep all ranks busy until FILE is there; "
                         "the same on all ranks; repeatable"),
          "Trying out faults");
    group(app.add_option("--faults-until", t.faults_until,
                         "Once this file exists, ignore --fault and --hold"),
          "Trying out faults");
    group(app.add_option("--leave-out", t.leave_out,
                         "Do not stage this step, which then fails on all ranks; repeatable"),
          "Trying out faults");
    group(app.add_option("--report", t.report,
                         "Write each event to this file descriptor, as "
                         "JSON lines"),
          "Trying out faults");
    group(app.add_option("--parent", parent, "End when this process, which started it, ends"),
          "Trying out faults");
    app.footer(kFooter);
  }

  // What the parser could not check.
  void complete() {
    auto& c = training.checkpoint;
    if (training.text.empty()) training.text = trainer::default_text();
    if (training.text.empty()) throw std::runtime_error("no text is installed: name one by --text");
    c.deadline = std::chrono::milliseconds(deadline_ms);
    c.forming_deadline = std::chrono::milliseconds(forming_ms);
    c.block_bytes = block_kib * 1024;
    if (!training.mesh.empty()) c.training_links = meshstage::TrainingLinks::kAll;
    const bool chosen = copies != 1 || !partners.empty();
    if (chosen || borrow) {
      c.environment = meshstage::RankEnvironment::detect();
      const auto domains =
          meshstage::FailureDomains::uniform(c.environment->world_size, ranks_per_host);
      meshstage::PartnerOptions options;
      options.copies = copies;
      if (!partners.empty()) options.policy = meshstage::parse_partner_policy(partners);
      if (chosen) c.holders = meshstage::make_holders(domains, options);
      if (borrow) {
        if (training.mesh.empty()) throw std::runtime_error("--borrow-replicated needs a --mesh");
        c.borrowed = meshstage::dtensor::borrowed_tensors(
            meshstage::DeviceMesh::from_shape(training.mesh), domains);
      }
    }
    if (device != "cpu") {
      if (!c.environment) c.environment = meshstage::RankEnvironment::detect();
      training.device = meshstage::tools::choose_device(device, c.environment->local_rank);
    }
    training.collectives = meshstage::tools::choose_collectives(collectives, training.device);
    if (any_world) c.any_world = trainer::reshard_options();
    for (const auto& text : faults) training.faults.push_back(trainer::Fault::parse(text));
    for (const auto& text : holds) training.holds.push_back(trainer::Hold::parse(text));
  }
};

// False if the parent is gone already.
bool end_with_parent(long parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  return ::getppid() == parent;
}

int complain(const char* what, int code) {
  std::fprintf(stderr, "meshstage-trainer: %s\n", what);
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Trains a small character-level language model on all ranks of a job and stages "
      "checkpoints while it does.",
      "meshstage-trainer"};
  Command command;
  command.add_to(app);
  std::signal(SIGPIPE, SIG_IGN);
  try {
    app.parse(argc, argv);
    if (command.parent != 0 && !end_with_parent(command.parent)) return kFailed;
    command.complete();
  } catch (const CLI::Success& e) {
    return app.exit(e);
  } catch (const meshstage::tools::DeviceUnusable& e) {
    return complain(e.what(), meshstage::tools::kDeviceUnusable);
  } catch (const std::exception& e) {
    return complain(e.what(), kWrongUse);
  }
  const trainer::Report report(command.training.report);
  const auto fail = [&report](const char* what, const std::exception& e, int code) {
    report.send(trainer::Line(what).add("why", e.what()));
    return complain(e.what(), code);
  };
  try {
    trainer::Training(command.training).run();
    return kOk;
  } catch (const meshstage::Fenced& e) {
    return fail("fenced", e, kFenced);
  } catch (const meshstage::InvalidArgument& e) {
    return fail("failed", e, kWrongUse);
  } catch (const std::exception& e) {
    return fail("failed", e, kFailed);
  }
}
