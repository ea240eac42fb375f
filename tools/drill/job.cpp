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
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/generation/number.hpp>
#include <meshstage/core/vault/listing.hpp>

namespace meshstage::tools::drill {
namespace {

constexpr std::int64_t kMillisecond = 1'000'000;
constexpr std::int64_t kSecond = 1'000 * kMillisecond;
// A replacement is started once all survivors have noticed, or after this.
constexpr std::int64_t kNoticeTime = 100 * kMillisecond;
// A zombie must find out that it was replaced within its deadline and this.
constexpr std::int64_t kFenceTime = 10 * kSecond;

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

int distance(std::string_view source) {
  if (source == "disk") return 3;
  if (source == "holder memory") return 2;
  return source == "own memory" ? 1 : 0;
}

std::string last_lines(const std::filesystem::path& file, std::size_t count) {
  std::ifstream in(file);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  std::string text;
  for (std::size_t i = lines.size() - std::min(count, lines.size()); i < lines.size(); ++i) {
    text += "    " + lines[i] + "\n";
  }
  return text;
}

}  // namespace

Job::Job(JobOptions options, Signals& signals, Display& display)
    : options_(std::move(options)), signals_(signals), display_(display) {
  const auto& trace = options_.arguments.trace;
  if (!trace.empty() && options_.every > 0) {
    trace_.open(trace, std::ios::trunc);
    if (!trace_) throw_errno("open", trace.string(), errno);
  }
  for (int rank = 0; rank < options_.arguments.ranks; ++rank) {
    seats_.push_back(std::make_unique<Seat>());
    auto& seat = *seats_.back();
    seat.rank = rank;
    for (const auto& fault : options_.faults) {
      if (!fault.rank || *fault.rank == rank) seat.pending.push_back(fault);
    }
  }
}

Job::~Job() = default;

std::filesystem::path Job::state_file(const std::filesystem::path& directory, int rank) {
  return directory / fmt::format("rank-{}.safetensors", rank);
}

ProcessPlan Job::plan(Seat& seat) {
  const auto& a = options_.arguments;
  const auto& dir = options_.directory;
  ProcessPlan plan;
  plan.program = options_.trainer;
  plan.log = dir / fmt::format("rank-{}.log", seat.rank);
  plan.arguments = {"--text",          a.text.string(),
                    "--steps",         std::to_string(a.steps),
                    "--every",         std::to_string(options_.every),
                    "--job",           options_.name,
                    "--dir",           (dir / "persisted").string(),
                    "--store",         "file:" + (dir / "store").string(),
                    "--vault",         options_.vault.string(),
                    "--persist-every", std::to_string(a.persist_every),
                    "--deadline-ms",   std::to_string(a.deadline_ms),
                    "--forming-ms",    std::to_string(a.timeout_s * 1000),
                    "--block-kib",     kBlockKib,
                    "--save",          state_file(dir, seat.rank).string()};
  if (!a.mesh.empty()) {
    plan.arguments.insert(plan.arguments.end(),
                          {"--mesh", fmt::format("{}", fmt::join(a.mesh, ","))});
  }
  for (const auto& [rank, step] : a.leave_out) {
    if (rank != seat.rank) continue;
    plan.arguments.insert(plan.arguments.end(), {"--leave-out", std::to_string(step)});
  }
  if (options_.every > 0) {
    plan.arguments.insert(plan.arguments.end(), {"--device", a.device});
  }
  if (a.connections != 0) {
    plan.arguments.insert(plan.arguments.end(), {"--connections", std::to_string(a.connections)});
  }
  if (a.spare_replicated) plan.arguments.emplace_back("--spare-replicated");
  if (a.ranks > 1) {
    plan.arguments.insert(plan.arguments.end(),
                          {"--copies", std::to_string(a.partners.copies), "--partners",
                           std::string(to_string(a.partners.policy)), "--ranks-per-host",
                           std::to_string(a.ranks_per_host)});
  }
  seat.given = seat.pending;
  for (const auto& fault : seat.given) {
    // A point of a step that the job has begun before is armed at once.
    const bool at_once = !fault.point.empty() && seat.starts > 0 && fault.step <= job_step();
    plan.arguments.emplace_back("--fault");
    plan.arguments.push_back(fmt::format("{}@{}{}{}", fault.how == How::kStop ? "stop" : "kill",
                                         at_once ? 0 : fault.step, fault.point.empty() ? "" : ":",
                                         fault.point));
  }
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (!names_a_rank(*entry)) plan.environment.emplace_back(*entry);
  }
  for (const char* name : {"RANK", "LOCAL_RANK"}) {
    plan.environment.push_back(fmt::format("MESHSTAGE_{}={}", name, seat.rank));
  }
  for (const char* name : {"WORLD_SIZE", "LOCAL_WORLD_SIZE"}) {
    plan.environment.push_back(fmt::format("MESHSTAGE_{}={}", name, a.ranks));
  }
  return plan;
}

void Job::start(Seat& seat) {
  const ProcessPlan what = plan(seat);  // looks at the job's step, so before forget_process()
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
    reap();
    replace_the_dead();
    settle();
    mind_zombies();
    show();
    check_time();
  }
  for (const auto& seat : seats_) {
    for (const auto& fault : seat->pending) {
      if (fault.rank || seat->rank == 0) result_.never_happened.push_back(fault);
    }
  }
  for (const auto& u : unexplained_) {
    display_.line(
        fmt::format("  note: rank {} gave the others up, without a fault that explains it: {}",
                    u.reporter, u.why));
  }
  result_.seconds = static_cast<double>(now_ns() - started_) * 1e-9;
  check_vaults();
  display_.clear_bar();
  return std::move(result_);
}

bool Job::done() const {
  return zombies_.empty() && std::all_of(seats_.begin(), seats_.end(), [](const auto& seat) {
           return seat->finished && !seat->process;
         });
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
    const auto end = seat->process->try_reap();
    if (!end) continue;
    const int process = seat->starts;
    for (const auto& text : seat->process->read_lines()) {  // its last words
      handle(*seat, Event(text));
      if (seat->starts != process) break;  // everything was started anew
    }
    if (seat->starts == process) ended(*seat, *end);
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
    const auto survivors = static_cast<std::size_t>(
        std::count_if(seats_.begin(), seats_.end(), [](const auto& s) { return s->death == 0; }));
    const std::int64_t waited = now_ns() - death.at;
    const std::int64_t patience =
        stopped ? static_cast<std::int64_t>(options_.arguments.deadline_ms) * kMillisecond + kSecond
                : kNoticeTime;
    if (witnesses(death, result_.deaths).noticed.size() < survivors && waited < patience) continue;
    if (stopped) {
      death.seen_by_drill = now_ns();
      zombies_.push_back({std::move(seat->process), seat->death - 1, 0, {}});
    }
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
  if (generation != checked_generation_) check_resources(generation);
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
    const Seat* seat = seats_[static_cast<std::size_t>(death.fault.rank.value_or(0))].get();
    if (!death.fault.rank) {  // of all, the one whose image came from farthest away
      for (const auto& other : seats_) {
        if (distance(other->source) > distance(seat->source)) seat = other.get();
      }
    }
    death.recovered_step = seat->recovered_step;
    death.source = seat->source;
    death.from_rank = seat->from_rank;
    if (death.fault.how != How::kStop) finish_death(death);
  }
}

// Whoever lives through a death has as many threads and descriptors afterwards. Only generations
// that all ranks recovered in count: while a peer is gone its connections are, too.
void Job::check_resources(std::uint64_t generation) {
  checked_generation_ = generation;
  for (const auto& seat : seats_) {
    for (const auto& [what, now] : seat->resources) {
      const auto before = seat->resources_before.emplace(what, now).first->second;
      if (now <= before) continue;
      result_.grown.push_back(fmt::format("rank {} has {} {} in {}, {} before", seat->rank, now,
                                          what, generation_text(generation), before));
    }
  }
}

void Job::finish_death(Death& death) { display_.line("  " + death.text()); }

// Wakes the stopped processes whose ranks are trained by others, and sees them end.
void Job::mind_zombies() {
  for (auto zombie = zombies_.begin(); zombie != zombies_.end();) {
    Death& death = result_.deaths[zombie->death];
    if (!death.settled) {
      ++zombie;
      continue;
    }
    if (zombie->woken_at == 0) {
      zombie->woken_at = now_ns();
      zombie->process->send_signal(SIGCONT);
    }
    const auto end = zombie->process->try_reap();
    const std::int64_t patience =
        kFenceTime + static_cast<std::int64_t>(options_.arguments.deadline_ms) * kMillisecond;
    if (!end) {
      if (now_ns() - zombie->woken_at > patience) {
        throw JobFailed(
            fmt::format("rank {}'s old process was woken up after it was replaced and "
                        "did not end by itself",
                        zombie->process->rank()));
      }
      ++zombie;
      continue;
    }
    zombie->listen();
    if (end->signalled || !zombie->said.starts_with("fenced")) {
      throw JobFailed(fmt::format(
          "rank {}'s old process was woken up after it was replaced; it "
          "must end because it is fenced, but ended with {}{}{}",
          zombie->process->rank(), end->text(), zombie->said.empty() ? "" : ", ", zombie->said));
    }
    death.woken = "woken up, its old process ended by itself: fenced";
    finish_death(death);
    zombie = zombies_.erase(zombie);
  }
}

// All have finished: what is left of the job in shared memory nobody would ever remove.
void Job::check_vaults() {
  for (const auto& vault : list_vaults(options_.vault)) {
    if (vault.job != options_.name) continue;
    const auto& deaths = result_.deaths;
    const bool killed_at_the_end = std::any_of(deaths.begin(), deaths.end(), [&](const auto& d) {
      return d.over && d.fault.rank == vault.rank;  // it could not; the workspace removes it
    });
    if (killed_at_the_end) continue;
    const auto log = options_.directory / fmt::format("rank-{}.log", vault.rank);
    result_.grown.push_back(
        fmt::format("rank {} left a vault of {} bytes behind (incarnation {}); it said last:\n{}",
                    vault.rank, vault.bytes, vault.incarnation, last_lines(log, 2)));
  }
}

void Job::wipe_vault(std::optional<int> rank) const {
  for (const auto& vault : list_vaults(options_.vault)) {
    if (vault.job == options_.name && (!rank || vault.rank == *rank) && !vault.owner_alive) {
      remove_vault(vault);
    }
  }
}

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

std::string Job::tails() const {
  std::string text;
  for (const auto& seat : seats_) {
    const auto log = options_.directory / fmt::format("rank-{}.log", seat->rank);
    const std::string lines = last_lines(log, 5);
    if (!lines.empty()) text += fmt::format("  rank {} said last:\n{}", seat->rank, lines);
  }
  return text;
}

}  // namespace meshstage::tools::drill
