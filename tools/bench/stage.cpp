#include <cstring>

#include <meshstage/core/memory/copy_threads.hpp>
#include <meshstage/core/stage/staging_plan.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>

#include "tools/bench/device_digests.hpp"
#include "tools/bench/limits.hpp"

namespace meshstage::tools::bench {

namespace {

// What a kernel copies that its device's memory binds.
constexpr std::uint64_t kKernelBytes = std::uint64_t{64} << 20U;

Result bench_stage_of_device(const Options& options, Device device, const Progress& progress) {
  const auto host = make_workload(options.workload, options.scale);
  Changes changes(host, options.changed);
  DeviceState on(device);
  const Value state = on.twin(Value(host));
  on.put();
  Result result;
  result.what = "stage";
  result.workload = options.workload;
  result.device = to_string(device);
  result.bytes = changes.state_bytes();

  progress("the first time");
  StateDictStager stager({.pin_memory = true,
                          .pin_memory_min_bytes = 1,
                          .pinner = &DeviceRuntime::of(device.type).pinner(device),
                          .streams = {on.trainer_stream()},
                          .snapshot = options.snapshot ? Snapshot::kAuto : Snapshot::kOff,
                          .copy_threads = options.threads});
  on.wait();
  result.first_seconds = seconds_of([&] { static_cast<void>(stager.stage(state)); });
  DeviceLimit limit(device, result.bytes);
  limit.copy(CopyDirection::kToHost);

  std::map<std::string, Samples> parts;
  auto& runtime = DeviceRuntime::of(device.type);
  Launcher trainer(device, kKernelBytes);
  DeviceDigestTime digests(device, state);
  const auto change = [&] {
    changes.step();
    on.put();
    on.wait();
  };
  for (int i = 0; i < options.repeat; ++i) {
    progress(round_text(i, options.repeat));
    change();
    result.times.add(seconds_of([&] { static_cast<void>(stager.stage(state)); }));
    result.limit.add(seconds_of([&] { limit.copy(CopyDirection::kToHost); }));
    change();
    // As a trainer does: the call, and what it issues next comes behind the copies.
    Work<Value> staged;
    parts["update held"].add(seconds_of([&] {
      parts["trainer blocked"].add(seconds_of([&] {
        staged = stager.stage_async(state);
        stager.before_update(on.trainer_stream());
      }));
      runtime.record(on.trainer_stream()).wait();
    }));
    parts["limit: to the device"].add(seconds_of([&] { limit.copy(CopyDirection::kToDevice); }));
    static_cast<void>(staged.get());
    parts["limit: within the device"].add(
        seconds_of([&] { limit.copy(CopyDirection::kWithinDevice); }));
    digests.add_to(parts);
    change();
    int left = 100;
    trainer.launch([&] { return --left == 0; });
    for (const double s : trainer.take().done.seconds) parts["kernel alone"].add(s);
    staged = stager.stage_async(state);
    trainer.launch([&] { return staged.ready(); });
    for (const double s : trainer.take().done.seconds) parts["kernel beside"].add(s);
    static_cast<void>(staged.get());
  }
  for (const auto& [name, samples] : parts) result.parts[name] = samples.median();
  return result;
}

}  // namespace

Result bench_stage(const Options& options, const Progress& progress) {
  const auto device = choose_device(options.device);
  if (!device.is_cpu()) return bench_stage_of_device(options, device, progress);
  const auto state = make_workload(options.workload, options.scale);
  Changes changes(state, options.changed);
  Result result;
  result.what = "stage";
  result.workload = options.workload;
  result.bytes = changes.state_bytes();
  const auto processors = available_processors();
  result.threads =
      options.threads != 0 ? options.threads : default_copy_threads(processors, Beside::kNothing);

  progress("the first time");  // before anything else takes fresh memory, as in a trainer
  StateDictStager stager({.copy_threads = options.threads});
  result.first_seconds = seconds_of([&] { static_cast<void>(stager.stage(state)); });

  std::optional<StagingPlan> plan;
  result.parts["plan"] = seconds_of([&] { plan = StagingPlan::compile(state); });
  result.parts["plan again"] = seconds_of([&] { plan = StagingPlan::compile(state, &*plan); });
  const auto image = Storage::allocate(plan->layout().image_bytes);
  std::memset(image.data(), 0, image.nbytes());
  plan->write_manifest(image.bytes());
  Crew crew("bench-copy", result.threads);
  MemoryLimit limit(result.bytes);
  progress("the limit");
  result.limit_threads = fastest([&](unsigned n) { limit.copy(n); }, 2 * processors.count());

  std::map<std::string, Samples> parts;
  for (int i = 0; i < options.repeat; ++i) {
    progress(round_text(i, options.repeat));
    changes.step();
    result.times.add(seconds_of([&] { static_cast<void>(stager.stage(state)); }));
    result.limit.add(seconds_of([&] { limit.copy(result.limit_threads); }));
    std::optional<StagingSource> source;
    parts["check"].add(seconds_of([&] { source = plan->capture(state); }));
    Watermark plain, digested;
    parts["copy"].add(
        seconds_of([&] { plan->copy(*source, image.bytes(), plain, {.crew = &crew}); }));
    auto digests = plan->block_digests();
    parts["copy and digest"].add(seconds_of([&] {
      plan->copy(*source, image.bytes(), digested, {.crew = &crew, .digests = &digests});
    }));
    parts["seal"].add(seconds_of([&] {
      static_cast<void>(plan->seal({"bench", 0, 1, {1, 1}, {}}, image.bytes(), digested, digests));
    }));
    parts["limit: digest"].add(seconds_of([&] { limit.digest(result.limit_threads); }));
  }
  for (const auto& [name, samples] : parts) result.parts[name] = samples.median();
  return result;
}

}  // namespace meshstage::tools::bench
