// The rank processes of replicate and recover.
#include <cstdio>
#include <memory>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/copy_threads.hpp>

#include "tools/bench/ranks.hpp"

namespace meshstage::tools::bench {

namespace {

using Report = std::function<void(const std::string& line)>;

std::string round_text(int i, int repeat) {
  return "round " + std::to_string(i + 1) + " of " + std::to_string(repeat);
}

// The fastest of the numbers tried, by rank 0's clock. Collective.
unsigned fastest_together(Seat& seat, const std::function<void(unsigned)>& once, unsigned most) {
  return seat.agree(fastest(
      [&](unsigned n) {
        seat.meet();
        once(n);
      },
      most));
}

Result start(const char* what, const Options& options, const Changes& changes) {
  Result result;
  result.what = what;
  result.workload = options.workload;
  result.bytes = changes.state_bytes();
  result.connections = 1;
  return result;
}

void check(Outcome outcome) {
  if (outcome != Outcome::kComplete)
    throw InvalidState("a step ended " + std::string(to_string(outcome)));
}

void replicate(Seat& seat, const Options& options, const Report& report) {
  Dict state = make_workload(options.workload, options.scale);
  Changes changes(state, options.changed);
  auto result = start("replicate", options, changes);
  const unsigned ranks = static_cast<unsigned>(seat.ranks());
  const auto processors = available_processors();
  result.threads = options.threads != 0 ? options.threads
                                        : default_copy_threads(processors, Beside::kTrainer, ranks);

  Checkpointer ckpt(seat.checkpointer());
  report("the first time");
  seat.meet();
  // Where nothing is to be recovered this stages step 0, into fresh memory.
  result.first_seconds = seconds_of([&] { static_cast<void>(ckpt.recover(state)); });
  std::uint64_t step = 0;
  double staged = 0;
  const auto once = [&] {
    changes.step();
    seat.meet();
    return seconds_of([&] {
      auto staging = ckpt.stage(state, ++step);
      staged = seconds_of([&] { staging.staged().wait(); });
      check(staging.outcome().get());
    });
  };
  result.parts["second"] = once();  // the second pair of slots is fresh memory, too

  report("the limit");
  MemoryLimit memory(result.bytes);
  const unsigned most = std::max(1U, 2 * processors.count() / ranks);
  result.limit_threads = fastest_together(seat, [&](unsigned n) { memory.copy(n); }, most);
  result.limit_connections = fastest_together(
      seat, [&](unsigned n) { seat.tcp().exchange(result.bytes, n); }, kTried.back());
  std::map<std::string, Samples> parts;
  for (int i = 0; i < options.repeat; ++i) {  // in turns, so that the drift meets all alike
    report(round_text(i, options.repeat));
    result.times.add(once());
    parts["until staged"].add(staged);
    seat.meet();
    const auto copy = seconds_of([&] { memory.copy(result.limit_threads); });
    seat.meet();
    const auto digest = seconds_of([&] { memory.digest(result.limit_threads); });
    seat.meet();
    const auto tcp =
        seconds_of([&] { seat.tcp().exchange(result.bytes, result.limit_connections); });
    parts["limit: copy"].add(copy);
    parts["limit: digest"].add(digest);
    parts["limit: TCP"].add(tcp);
    result.limit.add(copy + 2 * digest + tcp);
  }
  for (const auto& [name, samples] : parts) result.parts[name] = samples.median();
  ckpt.finish();
  report(encode_result(result));
}

// Rank 0 is the one that loses its host again and again.
void recover(Seat& seat, const Options& options, const Report& report) {
  Dict state = make_workload(options.workload, options.scale);
  Changes changes(state, options.changed);
  auto result = start("recover", options, changes);
  auto ckpt = std::make_unique<Checkpointer>(seat.checkpointer());
  static_cast<void>(ckpt->recover(state));
  std::uint64_t step = 0;
  Samples forming;
  const auto once = [&] {
    for (int i = 0; i < 2; ++i) {  // both slots
      changes.step();
      check(ckpt->stage(state, ++step).outcome().get());
    }
    seat.meet();
    double seconds = 0;
    Recovered recovered;
    if (seat.rank() == 0) {
      ckpt.reset();
      seat.lose_vault();
      forming.add(seconds_of([&] { ckpt = std::make_unique<Checkpointer>(seat.checkpointer()); }));
      seconds = seconds_of([&] { recovered = ckpt->recover(state); });
      if (recovered.source != Source::kHolderMemory)
        throw InvalidState("recovered from " + std::string(to_string(recovered.source)));
    } else {
      recovered = ckpt->rejoin().recover(state);
    }
    if (recovered.step != step) throw InvalidState("a step was lost");
    seat.meet();
    return seconds;
  };
  report("the first time");
  result.first_seconds = once();
  report("the limit");
  result.limit_connections = fastest_together(
      seat, [&](unsigned n) { seat.tcp().exchange(result.bytes, n); }, kTried.back());
  for (int i = 0; i < options.repeat; ++i) {
    report(round_text(i, options.repeat));
    result.times.add(once());
    seat.meet();
    result.limit.add(
        seconds_of([&] { seat.tcp().exchange(result.bytes, result.limit_connections); }));
  }
  result.parts["forming"] = forming.median();
  ckpt->finish();
  report(encode_result(result));
}

}  // namespace

Result bench_replicate(const Options& options, const Progress& progress) {
  return run_ranks("replicate", options, progress);
}

Result bench_recover(const Options& options, const Progress& progress) {
  return run_ranks("recover", options, progress);
}

void run_rank(const std::string& what, int rank, int report, const std::filesystem::path& directory,
              const Options& options) {
  const auto write_line = [report](const std::string& line) {
    ::dprintf(report, "%s\n", line.c_str());  // a parent that went away ends this process
  };
  Seat seat(rank, directory, options);
  if (what == "replicate") {
    replicate(seat, options, write_line);
  } else {
    recover(seat, options, write_line);
  }
}

}  // namespace meshstage::tools::bench
