#include "tools/drill/job.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fstream>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/vault/listing.hpp>

namespace meshstage::tools::drill {
namespace {

// A replacement is started once all survivors have noticed, or after this.
constexpr std::int64_t kNoticeTime = 100 * kMillisecond;

// Chunks small enough that an image of the example has about ten.
constexpr const char* kBlockKib = "256";

// Variables that say who a process is: ours replace them all.
bool names_a_rank(std::string_view entry) {
  for (const char* prefix : {"MESHSTAGE_", "OMPI_", "PMI_", "PMIX_", "SLURM_",
                             "RANK=", "WORLD_SIZE=", "LOCAL_RANK=", "LOCAL_WORLD_SIZE="}) {
    if (entry.starts_with(prefix)) return !entry.starts_with("MESHSTAGE_MODULE_PATH=");
  }
  return false;
}

// Of a recovered image: the farther it came the larger.
int distance(std::string_view source) {
  if (source == "disk") return 3;
  if (source == "holder memory") return 2;
  return source == "own memory" ? 1 : 0;
}

}  // namespace

Job::Job(JobOptions options, Signals& signals, Display& display)
    : options_(std::move(options)),
      signals_(signals),
      display_(display),
      pending_(options_.faults),
      seating_{options_.arguments.ranks} {
  result_.worlds.push_back({options_.arguments.ranks, 0});
  result_.states = make_states();
  const auto& trace = options_.arguments.trace;
  if (!trace.empty() && options_.every > 0) {
    trace_.open(trace, std::ios::trunc);
    if (!trace_) throw_errno("open", trace.string(), errno);
  }
  for (int rank = 0; rank < options_.arguments.ranks; ++rank) {
    seats_.push_back(std::make_unique<Seat>());
    seats_.back()->rank = rank;
  }
}

Job::~Job() = default;

std::filesystem::path Job::state_file(const std::filesystem::path& directory, int rank) {
  return directory / fmt::format("rank-{}.safetensors", rank);
}

// NCCL refuses ranks that share a device, unless it takes them for ranks of several hosts.
std::vector<std::string> Job::nccl_variables(int rank) const {
  const auto& a = options_.arguments;
  if (!a.over_nccl()) return {};
  const auto devices = device_support(DeviceType::kCuda).devices.size();
  if (a.device == "cuda" && devices >= seats_.size()) return {};
  return {fmt::format("NCCL_HOSTID={}-{}", options_.name, rank), "NCCL_NET=Socket",
          "NCCL_SOCKET_IFNAME=lo"};
}

// What every process of the rank gets, in a start of the job that is called so.
ProcessPlan Job::plan(int rank, const std::string& launch, const std::filesystem::path& log) const {
  const auto& a = options_.arguments;
  const auto& dir = options_.directory;
  const auto world = seats_.size();
  ProcessPlan plan;
  plan.program = options_.trainer;
  plan.log = log;
  plan.arguments = {
      "--text",          a.text.string(),
      "--steps",         std::to_string(a.steps),
      "--every",         std::to_string(options_.every),
      "--job",           options_.name,
      "--store",         "file:" + (dir / "store").string(),
      "--vault",         options_.hosts != nullptr ? "/dev/shm" : vault_of(rank).string(),
      "--persist-every", std::to_string(a.persist_every),
      "--deadline-ms",   std::to_string(a.deadline_ms),
      "--forming-ms",    std::to_string(a.timeout_s * 1000),
      "--block-kib",     kBlockKib};
  const auto add = [&plan](std::initializer_list<std::string> words) {
    plan.arguments.insert(plan.arguments.end(), words);
  };
  // Without files the trainer names no directory, and the default one must stay unused.
  if (a.persist_every > 0) add({"--dir", disk_seen_by(rank).string()});
  if (!a.mesh.empty()) add({"--mesh", fmt::format("{}", fmt::join(a.mesh, ","))});
  if (a.sharded) add({"--mesh", std::to_string(world)});
  for (const auto& [who, step] : a.leave_out) {
    if (who == rank) add({"--leave-out", std::to_string(step)});
  }
  if (options_.every > 0 || a.over_nccl()) add({"--device", a.device});
  if (a.over_nccl()) add({"--collectives", a.collectives});
  if (options_.every > 0 && a.changes_world()) add({"--any-world"});
  if (options_.until > 0) add({"--until", std::to_string(options_.until)});
  if (!options_.load.empty()) {
    add({"--load", state_file(options_.load, 0)});
    if (rank < options_.load_ranks) add({"--load-own", state_file(options_.load, rank)});
  }
  if (a.connections != 0) add({"--connections", std::to_string(a.connections)});
  if (a.borrow_replicated) add({"--borrow-replicated"});
  if (world > 1) {
    add({"--copies", std::to_string(a.partners.copies), "--partners",
         std::string(to_string(a.partners.policy)), "--ranks-per-host",
         std::to_string(a.ranks_per_host)});
  }
  auto own_variables = nccl_variables(rank);
  if (a.persist_every == 0) own_variables.push_back("XDG_STATE_HOME=" + unused_state().string());
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const bool replaced =
        std::any_of(own_variables.begin(), own_variables.end(), [&](const auto& variable) {
          return text.starts_with(variable.substr(0, variable.find('=') + 1));
        });
    if (!names_a_rank(text) && !replaced) plan.environment.emplace_back(text);
  }
  plan.environment.insert(plan.environment.end(), own_variables.begin(), own_variables.end());
  const bool apart = options_.hosts != nullptr;
  if (apart) plan.host = options_.hosts->entry(host_of(rank));
  const std::map<const char*, int> own{
      {"RANK", rank},
      {"WORLD_SIZE", static_cast<int>(world)},
      {"LOCAL_RANK", apart ? rank % a.ranks_per_host : rank},
      {"LOCAL_WORLD_SIZE", apart ? ranks_beside(rank) : static_cast<int>(world)}};
  for (const auto& [name, number] : own) {
    plan.environment.push_back(fmt::format("MESHSTAGE_{}={}", name, number));
  }
  if (a.starts_are_named()) plan.environment.push_back("MESHSTAGE_LAUNCH=" + launch);
  return plan;
}

// A process that takes the seat.
ProcessPlan Job::plan(Seat& seat, const std::string& launch) {
  ProcessPlan plan = this->plan(seat.rank, launch, log_file(seat.rank));
  const auto add = [&plan](std::initializer_list<std::string> words) {
    plan.arguments.insert(plan.arguments.end(), words);
  };
  add({"--save", state_file(result_.states, seat.rank)});
  add({"--faults-until", over_file().string()});
  seat.given.clear();
  // Each rank that trains a step again waits there with the others, whichever process it is:
  // waiting is a collective. What has happened is not waited for: its file is there.
  for (const auto& fault : options_.faults) {
    if (fault.how != How::kTwice) continue;
    add({"--hold", fmt::format("{}:{}", fault.step, go_on_file(fault).string())});
  }
  for (const auto& [step, file] : rival_holds_) {
    add({"--hold", fmt::format("{}:{}", step, file.string())});
  }
  for (const auto& fault : pending_) {
    if (fault.how == How::kTwice) continue;
    if (fault.rank && *fault.rank != seat.rank) continue;
    seat.given.push_back(fault);
    // A point of a step that the job has begun before is armed at once.
    const bool at_once = !fault.point.empty() && fault.step <= job_step();
    add({"--fault",
         fmt::format("{}@{}{}{}", fault.how == How::kStop ? "stop" : "kill",
                     at_once ? 0 : fault.step, fault.point.empty() ? "" : ":", fault.point)});
  }
  return plan;
}

void Job::start(Seat& seat) {
  const ProcessPlan what =
      plan(seat, name_of_start());  // looks at the job's step, so before forget_process()
  seat.forget_process();
  seat.process = std::make_unique<RankProcess>(seat.rank, what);
  ++seat.starts;
}

JobResult Job::run() {
  started_ = now_ns();
  progress_ = {};
  progress_.steps = options_.arguments.steps;
  for (auto& seat : seats_) start(*seat);
  while (!done()) {
    pump(50);
    mind_rival();
    reap();
    replace_the_dead();
    settle();
    mind_zombies();
    mind_second_start();
    show();
    check_time();
  }
  result_.never_happened = pending_;
  for (const auto& u : unexplained_) {
    const std::string what = fmt::format(
        "rank {} gave the others up, without a fault that explains it: {}", u.reporter, u.why);
    if (result_.second_starts.empty()) {
      display_.line("  note: " + what);
    } else {
      result_.wrong.push_back(what);  // no second start may disturb the job
    }
  }
  result_.seconds = static_cast<double>(now_ns() - started_) * 1e-9;
  check_vaults();
  display_.clear_bar();
  return std::move(result_);
}

bool Job::done() const {
  return zombies_.empty() && !rival_ &&
         std::all_of(seats_.begin(), seats_.end(),
                     [](const auto& seat) { return seat->finished && !seat->process; });
}

std::uint64_t Job::job_step() const {
  std::uint64_t step = 0;
  for (const auto& seat : seats_) step = std::max(step, seat->begun);
  for (const auto& death : result_.deaths) {
    if (!death.settled) step = std::max(step, death.step);
  }
  return step;
}

void Job::reap() {
  for (auto& seat : seats_) {
    if (!seat->process) continue;
    if (rival_ && !rival_won_ && !seat->joined) continue;  // the other start may have the job
    const auto end = seat->process->try_reap();
    if (!end) continue;
    std::vector<Event> last_words;
    for (const auto& text : seat->process->read_lines()) last_words.emplace_back(text);
    for (const auto& event : last_words) note(*seat, event);
    const int start = starts_;
    for (const auto& event : last_words) {
      handle(*seat, event);
      if (starts_ != start) return;  // everything was started anew
    }
    ended(*seat, *end);
  }
}

void Job::ended(Seat& seat, const End& end) {
  if (seat.death > 0 && end.signalled && end.code == SIGKILL) {
    Death& death = result_.deaths[seat.death - 1];
    death.seen_by_drill = now_ns();
    seat.process.reset();
    if (death.fault.how == How::kLose) wipe_vault(seat.rank);
    if (death.over) {
      seat.finished = true;
      seat.death = 0;
      finish_death(death);
    }
    return;
  }
  if (!end.signalled && end.code == 0 && seat.finished) {
    seat.process.reset();
    return;
  }
  throw JobFailed(fmt::format("rank {} ended by itself ({}) while {}{}{}", seat.rank, end.text(),
                              seat.doing, seat.failure.empty() ? "" : ": ", seat.failure));
}

void Job::replace_the_dead() {
  for (auto& seat : seats_) {
    if (seat->death == 0) continue;
    Death& death = result_.deaths[seat->death - 1];
    if (death.over) continue;
    const bool stopped = death.fault.how == How::kStop;
    if (!stopped && seat->process) continue;  // not reaped yet
    const bool lost = death.fault.how == How::kLose;
    if (lost && !host_is_down(*seat)) continue;
    const auto survivors = static_cast<std::size_t>(
        std::count_if(seats_.begin(), seats_.end(), [](const auto& s) { return s->death == 0; }));
    const std::int64_t waited = now_ns() - death.at;
    const std::int64_t patience =
        stopped ? static_cast<std::int64_t>(options_.arguments.deadline_ms) * kMillisecond + kSecond
                : kNoticeTime;
    if (witnesses(death, result_.deaths).noticed.size() < survivors && waited < patience) continue;
    if (stopped) {
      death.seen_by_drill = now_ns();
      becomes_zombie(*seat, seat->death - 1);
    }
    if (lost) lose_host(*seat);
    seat->death = 0;
    start(*seat);
  }
}

// All deaths are settled once every rank trains in one new generation.
void Job::settle() {
  std::uint64_t generation = 0;
  std::int64_t resumed = 0;
  for (const auto& seat : seats_) {
    if (seat->recovered_generation == 0) return;
    if (generation != 0 && seat->recovered_generation != generation) return;
    generation = seat->recovered_generation;
    resumed = std::max(resumed, seat->recovered_at);
  }
  if (generation != checked_generation_) {
    check_resources(generation);
    check_recovered(generation, seats_.front()->recovered_step);
    take_world(seats_.front()->recovered_step);
    checked_generation_ = generation;
  }
  // Before any is settled: others' witnesses speak for those that nobody had to notice.
  for (auto& death : result_.deaths) {
    if (death.settled || !death.noticed.empty()) continue;
    Witnesses found = witnesses(death, result_.deaths);
    death.noticed = std::move(found.noticed);
    death.along_with = found.along_with;
  }
  for (auto& death : result_.deaths) {
    if (death.settled) continue;
    death.settled = true;
    death.generation = generation;
    death.resumed_at = resumed;
    const auto rank = static_cast<std::size_t>(death.fault.rank.value_or(0));
    const Seat* seat = seats_[std::min(rank, seats_.size() - 1)].get();
    if (!death.fault.rank) {  // of all, the one whose image came from farthest away
      for (const auto& other : seats_) {
        if (distance(other->source) > distance(seat->source)) seat = other.get();
      }
    }
    death.recovered_step = seat->recovered_step;
    death.source = seat->source;
    death.from_rank = seat->from_rank;
    death.old_world = seat->old_world;
    if (death.old_processes == 0) finish_death(death);
  }
}

void Job::finish_death(Death& death) { display_.line("  " + death.text()); }

std::string Job::what_all_do() const {
  std::string text;
  for (const auto& seat : seats_) {
    text += fmt::format("{}rank {}: step {}, {}", text.empty() ? "" : "; ", seat->rank, seat->begun,
                        !seat->process && !seat->finished ? "dead" : seat->doing);
  }
  return text;
}

void Job::check_time() const {
  const auto limit = static_cast<std::int64_t>(options_.arguments.timeout_s) * kSecond;
  if (now_ns() - started_ < limit) return;
  throw JobFailed(
      fmt::format("not done after {} s ({})", options_.arguments.timeout_s, what_all_do()));
}

// The undisturbed run is soon over: a bar, but no lines.
void Job::show() {
  if (options_.every > 0 || display_.mode() == Display::Mode::kTerminal) {
    display_.progress(progress_);
  }
}

}  // namespace meshstage::tools::drill
