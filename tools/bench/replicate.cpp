// The rank processes of replicate and recover, and the start of all.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/copy_threads.hpp>

#include "tools/bench/ranks.hpp"

namespace meshstage::tools::bench {

namespace {

using Report = std::function<void(const std::string& line)>;

// A rank's state: of the CPU, or the twin on a device of what the host changes.
class State {
 public:
  State(const Options& options, int rank)
      : host_(make_workload(options.workload, options.scale)), changes_(host_, options.changed) {
    const auto device = choose_device(options.device, rank);
    if (device.is_cpu()) return;
    device_.emplace(device);
    twin_ = device_->twin(Value(host_)).as<Dict>();
    device_->put();
    device_->wait();
    limit_.emplace(device, changes_.state_bytes());
  }
  [[nodiscard]] Dict& dict() { return device_ ? twin_ : host_; }
  [[nodiscard]] std::uint64_t bytes() const { return changes_.state_bytes(); }
  [[nodiscard]] bool on_device() const { return device_.has_value(); }
  [[nodiscard]] Device device() const { return device_ ? device_->device() : kCpu; }
  /// Changes the state, behind what the step that was staged last still reads.
  void change(Staging& last) {
    if (!device_) last.staged().wait();
    changes_.step();
    if (!device_) return;
    last.before_update(device_->trainer_stream());
    device_->put();
    device_->wait();
  }
  /// One copy of all bytes between the device and page-locked memory; nothing without a device.
  void copy_by_device(CopyDirection direction) {
    if (limit_) limit_->copy(direction);
  }
  /// What a trainer's thread spends on a step until it may issue its next update.
  void before_update(Staging& staging) {
    if (device_) staging.before_update(device_->trainer_stream());
  }
  /// Waits until the device has come to what the trainer issued last.
  void wait_for_trainer() {
    if (device_) DeviceRuntime::of(device().type).record(device_->trainer_stream()).wait();
  }
  /// One copy of all bytes inside the device.
  void copy_within_device() { limit_->copy(CopyDirection::kWithinDevice); }

 private:
  Dict host_, twin_;
  Changes changes_;
  std::optional<DeviceState> device_;
  std::optional<DeviceLimit> limit_;
};

Result start(const char* what, const Options& options, const State& state) {
  Result result;
  result.device = to_string(state.device());
  result.what = what;
  result.workload = options.workload;
  result.bytes = state.bytes();
  return result;
}

void check(Outcome outcome) {
  if (outcome != Outcome::kComplete)
    throw InvalidState("a step ended " + std::string(to_string(outcome)));
}

void replicate(Seat& seat, const Options& options, const Report& report) {
  State state(options, seat.rank());
  auto result = start("replicate", options, state);
  const unsigned ranks = static_cast<unsigned>(seat.ranks());
  const auto processors = available_processors();
  result.threads = options.threads != 0 ? options.threads
                                        : default_copy_threads(processors, Beside::kTrainer, ranks);

  Checkpointer ckpt(seat.checkpointer());
  report("the first time");
  seat.meet();
  // Where nothing is to be recovered this stages step 0, into fresh memory.
  result.first_seconds = seconds_of([&] { static_cast<void>(ckpt.recover(state.dict())); });
  std::uint64_t step = 0;
  double staged = 0;
  double blocked = 0;
  double held = 0;
  Staging staging;
  const auto once = [&] {
    state.change(staging);
    seat.meet();
    return seconds_of([&] {
      blocked = seconds_of([&] {
        staging = ckpt.stage(state.dict(), ++step);
        state.before_update(staging);
      });
      if (state.on_device()) held = blocked + seconds_of([&] { state.wait_for_trainer(); });
      staged = seconds_of([&] { staging.staged().wait(); });
      check(staging.outcome().get());
    });
  };
  result.parts["second"] = once();  // the second pair of slots is fresh memory, too

  report("the limit");
  MemoryLimit memory(result.bytes);
  const unsigned most = std::max(1U, 2 * processors.count() / ranks);
  // The threads of the digests, too.
  result.limit_threads = fastest_together(seat, [&](unsigned n) { memory.copy(n); }, most);
  result.limit_connections = fastest_together(
      seat, [&](unsigned n) { seat.tcp().exchange(result.bytes, n); }, kTried.back());
  std::map<std::string, Samples> parts;
  for (int i = 0; i < options.repeat; ++i) {  // in turns, so that the drift meets all alike
    report(round_text(i, options.repeat));
    result.times.add(once());
    parts["until staged"].add(staged);
    parts["trainer blocked"].add(blocked);
    if (state.on_device()) {
      parts["update held"].add(held);
      seat.meet();
      parts["limit: within the device"].add(seconds_of([&] { state.copy_within_device(); }));
    }
    seat.meet();
    const auto copy = seconds_of([&] {
      if (state.on_device()) {
        state.copy_by_device(CopyDirection::kToHost);
      } else {
        memory.copy(result.limit_threads);
      }
    });
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
  result.connections = ckpt.stats().connections;
  ckpt.finish();
  report(encode_result(result));
}

// Rank 0 is the one that loses its host again and again.
void recover(Seat& seat, const Options& options, const Report& report) {
  State state(options, seat.rank());
  auto result = start("recover", options, state);
  auto ckpt = std::make_unique<Checkpointer>(seat.checkpointer());
  static_cast<void>(ckpt->recover(state.dict()));
  std::uint64_t step = 0;
  Samples forming;
  const auto once = [&] {
    for (int i = 0; i < 2; ++i) {  // both slots
      Staging last;
      state.change(last);
      last = ckpt->stage(state.dict(), ++step);
      check(last.outcome().get());
    }
    seat.meet();
    double seconds = 0;
    Recovered recovered;
    if (seat.rank() == 0) {
      ckpt.reset();
      seat.lose_vault();
      forming.add(seconds_of([&] { ckpt = std::make_unique<Checkpointer>(seat.checkpointer()); }));
      seconds = seconds_of([&] { recovered = ckpt->recover(state.dict()); });
      if (recovered.source != Source::kHolderMemory)
        throw InvalidState("recovered from " + std::string(to_string(recovered.source)));
    } else {
      recovered = ckpt->rejoin().recover(state.dict());
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
    result.limit.add(seconds_of([&] {
      seat.tcp().exchange(result.bytes, result.limit_connections);
      state.copy_by_device(CopyDirection::kToDevice);
    }));
  }
  result.parts["forming"] = forming.median();
  result.connections = ckpt->stats().recovery_connections;
  ckpt->finish();
  report(encode_result(result));
}

}  // namespace

Result bench_replicate(const Options& options, const Progress& progress) {
  static_cast<void>(choose_device(options.device));  // before any rank is started
  return run_ranks("replicate", options, progress);
}

Result bench_recover(const Options& options, const Progress& progress) {
  static_cast<void>(choose_device(options.device));
  return run_ranks("recover", options, progress);
}

namespace {

/// For reshard, whose processes are ranks of the old job, the new one, or both.
Options with_ranks_of_both(Options options) {
  options.ranks = std::max(options.from, options.to);
  return options;
}

}  // namespace

Result bench_reshard(const Options& options, const Progress& progress) {
  if (options.from == options.to) {
    throw InvalidArgument("--from " + std::to_string(options.from) + " --to " +
                          std::to_string(options.to) +
                          ": the number of ranks must change; write for example --from 2 --to 1");
  }
  return run_ranks("reshard", with_ranks_of_both(options), progress);
}

void run_rank(const std::string& what, int rank, int report, const std::filesystem::path& directory,
              const Options& options) {
  const auto write_line = [report](const std::string& line) {
    ::dprintf(report, "%s\n", line.c_str());  // a parent that went away ends this process
  };
  if (what == "reshard") {
    const Options of_both = with_ranks_of_both(options);
    Seat seat(rank, directory, of_both);
    return reshard(seat, of_both, write_line);
  }
  Seat seat(rank, directory, options);
  if (what == "replicate") {
    replicate(seat, options, write_line);
  } else {
    recover(seat, options, write_line);
  }
}

}  // namespace meshstage::tools::bench
