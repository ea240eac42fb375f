#include "tools/drill/arguments.hpp"

#include <unistd.h>

#include <algorithm>
#include <system_error>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/device_mesh.hpp>
#include <meshstage/mesh/replicated.hpp>

#include "tools/command/command.hpp"
#include "tools/drill/check_faults.hpp"
#include "tools/drill/numbers.hpp"
#include "tools/trainer/sharding.hpp"
#include "tools/trainer/text.hpp"

namespace meshstage::tools::drill {
namespace {

constexpr unsigned kMostConnections = 16;  // the library's
constexpr std::uint64_t kMostSteps = 100'000;
constexpr std::size_t kShortestText = 64;

[[noreturn]] void refuse(const std::string& what) { throw InvalidArgument(what); }

/// `RANK@STEP`: a step that is staged, and not the last of them, for only the next one tells the
/// others that this rank passed it by.
std::pair<int, std::uint64_t> parse_left_out(std::string_view text, const Arguments& a) {
  const auto at = text.find('@');
  const bool whole = at != std::string_view::npos;
  const auto rank = parse_number(text.substr(0, at));
  const std::uint64_t step = whole ? parse_number(text.substr(at + 1)).value_or(0) : 0;
  const std::uint64_t last = a.steps / a.every * a.every;
  if (!rank || *rank >= static_cast<std::uint64_t>(a.ranks) || step == 0 || step % a.every != 0 ||
      step >= last) {
    refuse(
        fmt::format("--leave-out {}: write RANK@STEP, RANK from 0 to {} and STEP a multiple of "
                    "{} below {}",
                    text, a.ranks - 1, a.every, last));
  }
  return {static_cast<int>(*rank), step};
}

}  // namespace

Holders Arguments::holders(int of_ranks) const {
  if (of_ranks == 1) return Holders(1);
  return make_holders(FailureDomains::uniform(of_ranks, ranks_per_host), partners);
}

int Arguments::host_count() const {
  const auto all = worlds();
  return (*std::max_element(all.begin(), all.end()) + ranks_per_host - 1) / ranks_per_host;
}

bool Arguments::moves_ranks() const {
  return std::any_of(faults.begin(), faults.end(),
                     [](const Fault& f) { return f.rotate || f.swap; });
}

bool Arguments::hosts_are_apart() const {
  return moves_ranks() || local_disks() || in_namespaces();
}

bool Arguments::starts_are_named() const {
  return std::any_of(faults.begin(), faults.end(), [](const Fault& f) {
    return f.how == How::kRestart || f.how == How::kTwice || (f.how == How::kStop && !f.rank);
  });
}

bool Arguments::changes_world() const { return worlds().size() > 1; }

std::vector<int> Arguments::worlds() const {
  std::vector<int> all{ranks};
  for (const auto& fault : faults) {
    if (fault.ranks > 0) all.push_back(fault.ranks);
  }
  return all;
}

std::vector<std::vector<int>> Arguments::lenders() const {
  std::vector<std::vector<int>> out(static_cast<std::size_t>(ranks));
  if (!borrow_replicated) return out;
  const auto device_mesh = DeviceMesh::from_shape(mesh);
  const auto domains = FailureDomains::uniform(ranks, ranks_per_host);
  const trainer::StatePlacements placements(device_mesh.ndim());
  for (const auto* each : {&placements.parameter, &placements.moment}) {
    const auto at = lenders_by_place(device_mesh, *each, domains);
    for (std::size_t rank = 0; rank < at.size(); ++rank) {
      if (at[rank] >= 0) out[rank].push_back(at[rank]);
    }
  }
  for (auto& ranks_of_one : out) {
    std::sort(ranks_of_one.begin(), ranks_of_one.end());
    ranks_of_one.erase(std::unique(ranks_of_one.begin(), ranks_of_one.end()), ranks_of_one.end());
  }
  return out;
}

void ArgumentParser::add_to(CLI::App& command) {
  command.add_option("--ranks", ranks_,
                     "Processes to train with, 1 to 64\n(default: 4, or those of --mesh)");
  command
      .add_option("--mesh", given_.mesh,
                  "2,2: cut the optimizer's moments over a mesh of that shape,\n"
                  "along its last dimension, and repeat them along the others")
      ->delimiter(',')
      ->type_name("SIZES");
  command.add_flag("--sharded", given_.sharded,
                   "Cut the optimizer's moments over all ranks, and anew when\n"
                   "their number changes; the undisturbed run has them whole, and\n"
                   "the parts together are compared with that");
  command.add_flag("--spare-replicated", given_.borrow_replicated)->group("");  // its old name
  command.add_flag("--borrow-replicated", given_.borrow_replicated,
                   "With --mesh: copies borrow what the mesh repeats on another\n"
                   "host, so it is neither sent nor held; a lost rank gets it\n"
                   "from there; the borrowed bytes are printed");
  command
      .add_option("--copies", given_.partners.copies,
                  "Ranks that hold a copy of each rank's images")
      ->capture_default_str();
  command.add_option("--partners", policy_,
                     "How these are chosen: half-shift, ring, across-hosts, cliques\n"
                     "(default: half-shift)");
  command
      .add_option("--ranks-per-host", given_.ranks_per_host,
                  "Count so many neighbouring ranks as one host")
      ->capture_default_str();
  command
      .add_option("--hosts", given_.hosts,
                  "directories: a host is a directory for its vaults, or nothing;\n"
                  "namespaces: each is a set of Linux namespaces, with an address\n"
                  "on a private network, and a host name, process ids and a\n"
                  "/dev/shm of its own; as root")
      ->capture_default_str()
      ->type_name("directories|namespaces");
  command
      .add_option("--disks", given_.disks,
                  "shared: one directory for the files of all ranks; local: each\n"
                  "host has a disk of its own, and no rank of another host sees\n"
                  "that or the host's vaults")
      ->capture_default_str()
      ->type_name("shared|local");
  command
      .add_option("--connections", given_.connections,
                  "Connections of two ranks for images, at most 16\n(default: by the processors)")
      ->check(whole_number());
  command
      .add_option("--device", given_.device,
                  "cuda: the states live on devices, dealt out to the ranks in\n"
                  "turn, cuda:1: all on that one; computing stays on the host,\n"
                  "and the undisturbed run is in host memory")
      ->capture_default_str();
  command
      .add_option("--collectives", given_.collectives,
                  "nccl: gradients are averaged over NCCL in the devices'\n"
                  "memory, in both runs, for its order of additions is its own;\n"
                  "ranks that share a device reach each other over loopback")
      ->capture_default_str();
  command.add_option("--steps", given_.steps, "Steps to train")
      ->check(whole_number())
      ->capture_default_str();
  command.add_option("--every", given_.every, "Stage a checkpoint after every n-th step")
      ->check(whole_number())
      ->capture_default_str();
  command.add_option("--text", text_, "Text to learn (default: the licence of this project)");
  command.add_option("--dir", given_.directory,
                     "Directory for the run's files; they are removed at the end\n(default: a "
                     "temporary directory)");
  command.add_flag("--json", given_.json, "Print one JSON object and nothing else");
  command
      .add_option("--kill", kills_,
                  "RANK@STEP[:POINT]: SIGKILL as RANK begins to train STEP, or\n"
                  "when it first passes the protocol point POINT from then on;\n"
                  "all@STEP: the whole job, which then starts again from its\n"
                  "vaults; repeatable")
      ->type_name("R@S[:P]");
  command
      .add_option("--stop", stops_,
                  "RANK@STEP[:POINT]: SIGSTOP, so RANK hangs; another process\n"
                  "replaces it, then it is woken up; all@STEP[:POINT]: all hang,\n"
                  "the job is started anew beside them as by --restart, then\n"
                  "they are killed, or with :wake woken up; with :half every\n"
                  "second rank is killed at once; repeatable")
      ->type_name("R@S[:P]");
  command
      .add_option("--lose", loses_,
                  "RANK@STEP[:POINT]: SIGKILL, and its vault is wiped, as if a\n"
                  "host were lost; 1+2@STEP: two ranks at once; all@STEP: only\n"
                  "the disk is left, and with :rotate (:swap) ranks then sit on\n"
                  "other hosts; with --disks local the host's disk goes, too, but\n"
                  "not with all@STEP; with --hosts namespaces the host goes and\n"
                  "boots anew, empty; repeatable")
      ->type_name("R@S[:P]");
  command
      .add_option("--restart", restarts_,
                  "all@STEP[:POINT]: SIGKILL to all once one of them is there,\n"
                  "and the job is started anew; with :rotate each rank then\n"
                  "sits on the next host, with :swap hosts change their ranks\n"
                  "in pairs, with :ranks=N there are N ranks, with :twice the\n"
                  "job is started two times at once; repeatable")
      ->type_name("all@S[:P]");
  command
      .add_option("--twice", twice_,
                  "STEP: the job is started a second time, beside the healthy\n"
                  "one, which must refuse that; repeatable")
      ->type_name("S");
  command
      .add_option("--leave-out", left_out_,
                  "RANK@STEP: RANK alone does not stage STEP, which then fails\n"
                  "on all ranks; repeatable")
      ->type_name("R@S");
  command.add_option("--kills", random_kills_, "This many kills at random ranks, steps and points")
      ->check(whole_number());
  command
      .add_option("--restarts", random_restarts_,
                  "This many random faults of the whole job: restarts, stops of\n"
                  "all, second starts")
      ->check(whole_number());
  command.add_option("--seed", seed_, "Random seed of --kills and --restarts (default: 1)")
      ->check(whole_number());
  command
      .add_option(
          "--persist-every", persist_every_,
          "Every n-th complete staged step goes to disk\n(default: 4; 1 with --lose all); 0: "
          "no rank writes files")
      ->check(whole_number());
  command
      .add_option("--deadline-ms", deadline_ms_,
                  "A silent rank counts as dead after this\n(default: 15000; 2000 with --stop)")
      ->check(whole_number());
  command.add_option(
      "--trace", given_.trace,
      "Write all reports of the ranks to this file, as JSON\nlines (tools/trainer/README.md)");
  command.add_option("--timeout", given_.timeout_s, "Give up after this many seconds in one run")
      ->check(whole_number())
      ->capture_default_str();
}

std::filesystem::path ArgumentParser::find_text() const {
  std::error_code error;
  const std::filesystem::path file =
      text_.empty() ? trainer::default_text() : std::filesystem::path(text_);
  if (file.empty()) throw NotFound("no text is installed to train on: name one by --text FILE");
  if (!std::filesystem::is_regular_file(file, error) || ::access(file.c_str(), R_OK) != 0) {
    throw NotFound(
        fmt::format("--text {}: there is no such file to read; name a text file of at "
                    "least {} bytes",
                    file.string(), kShortestText));
  }
  if (std::filesystem::file_size(file, error) < kShortestText) {
    refuse(fmt::format("--text {}: too short to train on; name a text file of at least {} bytes",
                       file.string(), kShortestText));
  }
  return std::filesystem::absolute(file);
}

void ArgumentParser::check_numbers() const {
  if (given_.steps < 1 || given_.steps > kMostSteps) {
    refuse(fmt::format("--steps {}: write a number from 1 to {}", given_.steps, kMostSteps));
  }
  if (given_.every < 1 || given_.every > given_.steps) {
    refuse(fmt::format("--every {}: write a number from 1 to --steps ({})", given_.every,
                       given_.steps));
  }
  if (given_.connections > kMostConnections) {
    refuse(fmt::format("--connections {}: write a number from 1 to {}", given_.connections,
                       kMostConnections));
  }
  if (given_.timeout_s < 1) refuse("--timeout 0: write a number of seconds from 1");
  if (deadline_ms_ && (*deadline_ms_ < 100 || *deadline_ms_ > 600'000)) {
    refuse(fmt::format("--deadline-ms {}: write a number from 100 to 600000", *deadline_ms_));
  }
  if (seed_ && !random_kills_ && !random_restarts_) {
    refuse("--seed draws the faults of --kills and --restarts: give both, --kills 3 --seed 1");
  }
  for (const auto& [name, count] :
       {std::pair{"--kills", random_kills_}, std::pair{"--restarts", random_restarts_}}) {
    if (count && (*count < 1 || *count > 1000)) {
      refuse(fmt::format("{} {}: write a number from 1 to 1000", name, *count));
    }
  }
}

/// Ranks, mesh and holders.
void ArgumentParser::place(Arguments& a) const {
  if (!a.mesh.empty()) {
    const std::string text = fmt::format("{}", fmt::join(a.mesh, ","));
    const auto mesh = DeviceMesh::from_shape(a.mesh);
    if (ranks_ && mesh.size() != *ranks_) {
      refuse(fmt::format("--mesh {}: has {} ranks, --ranks says {}; give --mesh alone", text,
                         mesh.size(), *ranks_));
    }
    if (mesh.size() > kMostRanks) {
      refuse(fmt::format("--mesh {}: has {} ranks; at most {} are trained with", text, mesh.size(),
                         kMostRanks));
    }
    if (a.sharded) {
      refuse(fmt::format("--sharded: --mesh {} says how the moments are cut; leave one of them out",
                         text));
    }
    a.ranks = static_cast<int>(mesh.size());
  } else if (a.borrow_replicated) {
    refuse("--borrow-replicated needs a mesh that repeats something: --mesh 2,2");
  } else {
    a.ranks = ranks_.value_or(a.ranks);
  }
  if (a.ranks < 1 || a.ranks > kMostRanks) {
    refuse(fmt::format("--ranks {}: write a number from 1 to {}", a.ranks, kMostRanks));
  }
  if (a.partners.copies < 1) {
    refuse(fmt::format("--copies {}: write a number from 1", a.partners.copies));
  }
  if (a.disks != "shared" && a.disks != "local") {
    refuse(fmt::format("--disks {}: write shared or local", a.disks));
  }
  if (a.hosts != "directories" && a.hosts != "namespaces") {
    refuse(fmt::format("--hosts {}: write directories or namespaces", a.hosts));
  }
  if (a.in_namespaces() && a.over_nccl()) {
    refuse("--collectives nccl: ranks that share a device need one host; leave --hosts out");
  }
  if (a.ranks_per_host < 1) {
    refuse(fmt::format("--ranks-per-host {}: write a number from 1", a.ranks_per_host));
  }
  if (!policy_.empty()) a.partners.policy = parse_partner_policy(policy_);
  (void)a.holders();  // says why not, and what would be
}

void ArgumentParser::take_faults(Arguments& a) const {
  const auto append = [&a](const std::vector<Fault>& more) {
    a.faults.insert(a.faults.end(), more.begin(), more.end());
  };
  // Of these follows which ranks there are.
  for (const auto& text : restarts_) {
    a.faults.push_back(parse_fault(How::kRestart, text, a.ranks, a.steps));
  }
  if (random_restarts_) {
    append(random_restarts(*random_restarts_, seed_.value_or(1), a, random_kills_.value_or(0)));
  }
  const auto worlds = a.worlds();
  const int most = *std::max_element(worlds.begin(), worlds.end());
  const auto add = [&](How how, const std::vector<std::string>& texts) {
    for (const auto& text : texts) a.faults.push_back(parse_fault(how, text, most, a.steps));
  };
  add(How::kKill, kills_);
  add(How::kStop, stops_);
  add(How::kLose, loses_);
  add(How::kTwice, twice_);
  if (random_kills_) {
    append(random_kills(*random_kills_, seed_.value_or(1), a, random_restarts_.value_or(0)));
  }
  if (a.faults.empty()) a.faults.push_back(default_fault(a));
  std::stable_sort(a.faults.begin(), a.faults.end(),
                   [](const Fault& x, const Fault& y) { return x.step < y.step; });
  check_together(a);
}

Arguments ArgumentParser::complete() const {
  check_numbers();
  Arguments a = given_;
  place(a);
  take_faults(a);
  for (const auto& text : left_out_) a.leave_out.push_back(parse_left_out(text, a));
  a.text = find_text();
  std::error_code error;
  if (!a.directory.empty()) {
    a.directory = std::filesystem::absolute(a.directory);
    if (std::filesystem::exists(a.directory, error) &&
        !std::filesystem::is_directory(a.directory, error)) {
      refuse(fmt::format("--dir {}: is no directory", a.directory.string()));
    }
  }
  if (!a.trace.empty() &&
      (std::filesystem::is_directory(a.trace, error) ||
       !std::filesystem::is_directory(std::filesystem::absolute(a.trace).parent_path(), error))) {
    refuse(fmt::format("--trace {}: cannot be written: name a file in a directory that exists",
                       a.trace.string()));
  }
  const auto worlds = a.worlds();
  const bool disk_alone = std::any_of(a.faults.begin(), a.faults.end(), [&](const Fault& f) {
    return f.how == How::kLose && std::any_of(worlds.begin(), worlds.end(), [&](int world) {
             return lost_to_memory(f, a, world).has_value();
           });
  });
  const bool stops = std::any_of(a.faults.begin(), a.faults.end(),
                                 [](const Fault& f) { return f.how == How::kStop; });
  a.persist_every = persist_every_.value_or(disk_alone ? 1 : 4);
  a.deadline_ms = deadline_ms_.value_or(stops ? 2'000 : 15'000);
  return a;
}

}  // namespace meshstage::tools::drill
