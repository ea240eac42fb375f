#include "tools/drill/arguments.hpp"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <system_error>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/protocol/points.hpp>
#include <meshstage/mesh/device_mesh.hpp>
#include <meshstage/mesh/replicated.hpp>

#include "tools/command/command.hpp"
#include "tools/trainer/sharding.hpp"
#include "tools/trainer/text.hpp"

namespace meshstage::tools::drill {
namespace {

constexpr int kMostRanks = 64;
constexpr unsigned kMostConnections = 16;  // the library's
constexpr std::uint64_t kMostSteps = 100'000;
constexpr std::size_t kShortestText = 64;

std::vector<std::string_view> point_names() {
  std::vector<std::string_view> names;
  for (const auto point : protocol::all_points()) names.push_back(protocol::to_string(point));
  return names;
}

std::optional<std::uint64_t> parse_number(std::string_view text) {
  std::uint64_t number = 0;
  const auto* end = text.data() + text.size();
  const auto [after, error] = std::from_chars(text.data(), end, number);
  if (text.empty() || error != std::errc() || after != end) return std::nullopt;
  return number;
}

[[noreturn]] void refuse(const std::string& what) { throw InvalidArgument(what); }

/// Whether some rank goes together with all its holders, or with a lender of what they
/// have, so that no memory has its image.
bool leaves_disk_alone(const Fault& fault, const Arguments& a) {
  const auto goes = [&fault](int rank) {
    return !fault.rank || *fault.rank == rank ||
           std::find(fault.with.begin(), fault.with.end(), rank) != fault.with.end();
  };
  const Holders holders = a.holders();
  const auto lenders = a.lenders();
  for (std::size_t owner = 0; owner < holders.size(); ++owner) {
    if (goes(static_cast<int>(owner)) &&
        (std::all_of(holders[owner].begin(), holders[owner].end(), goes) ||
         std::any_of(lenders[owner].begin(), lenders[owner].end(), goes))) {
      return true;
    }
  }
  return false;
}

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

std::string_view to_string(How how) noexcept {
  switch (how) {
    case How::kKill:
      return "kill";
    case How::kStop:
      return "stop";
    case How::kLose:
      return "lose";
  }
  return "?";
}

std::string Fault::text() const {
  std::string who = rank ? std::to_string(*rank) : "all";
  for (const int other : with) who += "+" + std::to_string(other);
  return fmt::format("--{} {}@{}{}{}", to_string(how), who, step, point.empty() ? "" : ":", point);
}

Holders Arguments::holders() const {
  if (ranks == 1) return Holders(1);
  return make_holders(FailureDomains::uniform(ranks, ranks_per_host), partners);
}

std::vector<std::vector<int>> Arguments::lenders() const {
  std::vector<std::vector<int>> out(static_cast<std::size_t>(ranks));
  if (!spare_replicated) return out;
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

Fault parse_fault(How how, std::string_view text, int ranks, std::uint64_t steps) {
  const std::string option = fmt::format("--{} {}", to_string(how), text);
  const char* form = how == How::kStop
                         ? "RANK@STEP[:POINT]"
                         : "RANK@STEP[:POINT], RANK+RANK@STEP[:POINT] or all@STEP[:POINT]";
  const auto at = text.find('@');
  if (at == std::string_view::npos) {
    refuse(fmt::format("{}: write {}, for example --{} 2@87", option, form, to_string(how)));
  }
  const std::string_view who = text.substr(0, at);
  std::string_view when = text.substr(at + 1);
  Fault fault;
  fault.how = how;
  const auto colon = when.find(':');
  if (colon != std::string_view::npos) {
    fault.point = when.substr(colon + 1);
    when = when.substr(0, colon);
    if (!protocol::parse_point(fault.point)) {
      refuse(fmt::format("{}: there is no protocol point '{}'; points are {}", option, fault.point,
                         fmt::join(point_names(), ", ")));
    }
  }
  if (who == "all") {
    if (how == How::kStop) refuse(option + ": if all ranks hang nobody notices; write RANK@STEP");
  } else {
    for (std::string_view rest = who;;) {
      const auto plus = rest.find('+');
      const std::string_view one = rest.substr(0, plus);
      const auto rank = parse_number(one);
      if (!rank) refuse(fmt::format("{}: '{}' is no rank; write {}", option, one, form));
      if (*rank >= static_cast<std::uint64_t>(ranks)) {
        refuse(fmt::format("{}: there is no rank {}; ranks are 0 to {}", option, *rank, ranks - 1));
      }
      const int number = static_cast<int>(*rank);
      if (fault.rank == number ||
          std::find(fault.with.begin(), fault.with.end(), number) != fault.with.end()) {
        refuse(fmt::format("{}: rank {} is named twice", option, number));
      }
      if (!fault.rank) {
        fault.rank = number;
      } else {
        fault.with.push_back(number);
      }
      if (plus == std::string_view::npos) break;
      rest.remove_prefix(plus + 1);
    }
    if (how == How::kStop && !fault.with.empty()) {
      refuse(option + ": one rank hangs at a time; write " + form);
    }
  }
  const auto step = parse_number(when);
  if (!step) refuse(fmt::format("{}: '{}' is no step; write {}", option, when, form));
  // Step 0 is the one that all begin with: it is staged and not trained.
  if ((*step == 0 && fault.point.empty()) || *step > steps) {
    refuse(fmt::format("{}: there is no step {}; steps are 1 to {}", option, *step, steps));
  }
  fault.step = *step;
  return fault;
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
  command.add_flag("--spare-replicated", given_.spare_replicated,
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
      .add_option("--connections", given_.connections,
                  "Connections of two ranks for images, at most 16\n(default: by the processors)")
      ->check(whole_number());
  command
      .add_option("--device", given_.device,
                  "cuda: the states live on devices, dealt out to the ranks in\n"
                  "turn, cuda:1: all on that one; computing stays on the host,\n"
                  "and the undisturbed run is in host memory")
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
                  "replaces it, then it is woken up; repeatable")
      ->type_name("R@S[:P]");
  command
      .add_option("--lose", loses_,
                  "RANK@STEP[:POINT]: SIGKILL, and its vault is wiped, as if a\n"
                  "host were lost; 1+2@STEP: two ranks at once; all@STEP: only\n"
                  "the disk is left; repeatable")
      ->type_name("R@S[:P]");
  command
      .add_option("--leave-out", left_out_,
                  "RANK@STEP: RANK alone does not stage STEP, which then fails\n"
                  "on all ranks; repeatable")
      ->type_name("R@S");
  command.add_option("--kills", random_kills_, "This many kills at random ranks, steps and points")
      ->check(whole_number());
  command.add_option("--seed", seed_, "Random seed of --kills (default: 1)")->check(whole_number());
  command
      .add_option("--persist-every", persist_every_,
                  "Every n-th complete staged step goes to disk\n(default: 4; 1 with --lose all)")
      ->check(whole_number());
  command
      .add_option("--deadline-ms", deadline_ms_,
                  "A silent rank is taken for dead after this\n(default: 15000; 2000 with --stop)")
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
  if (seed_ && !random_kills_)
    refuse("--seed draws the kills of --kills: give both, --kills 3 --seed 1");
  if (random_kills_ && (*random_kills_ < 1 || *random_kills_ > 1000)) {
    refuse(fmt::format("--kills {}: write a number from 1 to 1000", *random_kills_));
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
    a.ranks = static_cast<int>(mesh.size());
  } else if (a.spare_replicated) {
    refuse("--spare-replicated needs a mesh that repeats something: --mesh 2,2");
  } else {
    a.ranks = ranks_.value_or(a.ranks);
  }
  if (a.ranks < 1 || a.ranks > kMostRanks) {
    refuse(fmt::format("--ranks {}: write a number from 1 to {}", a.ranks, kMostRanks));
  }
  if (a.partners.copies < 1) {
    refuse(fmt::format("--copies {}: write a number from 1", a.partners.copies));
  }
  if (a.ranks_per_host < 1) {
    refuse(fmt::format("--ranks-per-host {}: write a number from 1", a.ranks_per_host));
  }
  if (!policy_.empty()) a.partners.policy = parse_partner_policy(policy_);
  (void)a.holders();  // says why not, and what would be
}

Arguments ArgumentParser::complete() const {
  check_numbers();
  Arguments a = given_;
  place(a);
  const auto add = [&a](How how, const std::vector<std::string>& texts) {
    for (const auto& text : texts) a.faults.push_back(parse_fault(how, text, a.ranks, a.steps));
  };
  add(How::kKill, kills_);
  add(How::kStop, stops_);
  add(How::kLose, loses_);
  if (!stops_.empty() && a.ranks == 1) {
    refuse("--stop needs another rank that notices: give --ranks 2 or more");
  }
  if (random_kills_) {
    const auto more = random_kills(*random_kills_, seed_.value_or(1), a);
    a.faults.insert(a.faults.end(), more.begin(), more.end());
  }
  if (a.faults.empty()) a.faults.push_back(default_fault(a));
  for (const auto& text : left_out_) a.leave_out.push_back(parse_left_out(text, a));
  std::stable_sort(a.faults.begin(), a.faults.end(),
                   [](const Fault& x, const Fault& y) { return x.step < y.step; });
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
  const bool disk_alone = std::any_of(a.faults.begin(), a.faults.end(), [&](const Fault& f) {
    return f.how == How::kLose && leaves_disk_alone(f, a);
  });
  a.persist_every = persist_every_.value_or(disk_alone ? 1 : 4);
  a.deadline_ms = deadline_ms_.value_or(stops_.empty() ? 15'000 : 2'000);
  return a;
}

}  // namespace meshstage::tools::drill
