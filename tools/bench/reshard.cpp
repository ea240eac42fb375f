// The rank processes of reshard: a job ends, and goes on with another number of ranks.
#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/copy_threads.hpp>
#include <meshstage/dtensor/dtensor.hpp>
#include <meshstage/dtensor/node.hpp>
#include <meshstage/mesh/device_mesh.hpp>

#include "tools/bench/ranks.hpp"

namespace meshstage::tools::bench {
namespace {

/// Every tensor of the workload as a DTensor, cut along its first dimension; `done` keeps ties.
Value cut(const Value& value, const DeviceMesh& mesh, int rank,
          std::map<const std::byte*, Value>& done) {
  if (const auto* dict = value.get_if<Dict>()) {
    Dict parts;
    for (const auto& [key, child] : *dict) parts.set(key, cut(child, mesh, rank, done));
    return parts;
  }
  const auto* tensor = value.get_if<Tensor>();
  if (tensor == nullptr || tensor->shape().empty()) return value;
  const auto [at, fresh] = done.try_emplace(tensor->storage().data());
  if (fresh) {
    at->second = dtensor::to_value(DTensor::from_full(*tensor, mesh, rank, {Placement::shard(0)}));
  }
  return at->second;
}

Dict part_of(const Options& options, int rank, int world) {
  std::map<const std::byte*, Value> done;
  return cut(make_workload(options.workload, options.scale), DeviceMesh::from_shape({world}), rank,
             done)
      .as<Dict>();
}

}  // namespace

void reshard(Seat& seat, const Options& options,
             const std::function<void(const std::string& line)>& report) {
  Result result;
  result.what = "reshard";
  result.workload = options.workload;
  result.threads = options.threads != 0
                       ? options.threads
                       : default_copy_threads(available_processors(), Beside::kNothing,
                                              static_cast<unsigned>(options.to));
  const int rank = seat.rank();
  int jobs = 0;
  Samples forming;
  const auto once = [&] {
    CheckpointerOptions job = seat.checkpointer();
    job.job += "-" + std::to_string(++jobs);
    job.directory /= std::to_string(jobs);
    job.any_world.emplace();
    dtensor::register_boxes(job.any_world->readers);
    if (options.files) job.persist_every = 1;
    const auto in_world = [&job](int world) {
      CheckpointerOptions one = job;
      one.environment->world_size = one.environment->local_world_size = world;
      return one;
    };
    if (rank < options.from) {
      Dict state = part_of(options, rank, options.from);
      Checkpointer old(in_world(options.from));
      static_cast<void>(old.recover(state));
      Staging step = old.stage(state, 1);
      if (step.outcome().get() != Outcome::kComplete) throw InvalidState("a step is not complete");
      if (options.files) step.persisted().get();
    }
    seat.meet();
    double seconds = 0;
    if (rank < options.to) {
      Dict state = part_of(options, rank, options.to);
      result.bytes = Changes(state, 1).state_bytes();
      std::unique_ptr<Checkpointer> anew;
      forming.add(seconds_of([&] { anew = std::make_unique<Checkpointer>(in_world(options.to)); }));
      Recovered recovered;
      seconds = seconds_of([&] { recovered = anew->recover(state); });
      if (recovered.step != 1 || recovered.old_world_size != options.from) {
        throw InvalidState("the step of the other number of ranks was lost");
      }
      result.connections = anew->stats().recovery_connections;
      anew->finish();
    }
    seat.meet();
    if (rank == 0) std::filesystem::remove_all(job.directory);
    seat.meet();
    return seconds;
  };
  report("the first time");
  result.first_seconds = once();
  report("the limit");
  const bool comes_back = rank < options.to;
  auto memory = std::make_unique<MemoryLimit>(comes_back ? result.bytes : 0);
  result.limit_threads = fastest_together(
      seat,
      [&](unsigned n) {
        if (comes_back) memory->copy(n);
      },
      kTried.back());
  // Of the new ranks, each of which has rank 0's bytes about, all ranks of the ring send the means.
  // In KiB, by rank 0, which is in either job.
  const std::uint64_t sent = result.bytes * static_cast<std::uint64_t>(options.to) /
                             static_cast<std::uint64_t>(seat.ranks());
  const std::uint64_t replicas =
      options.to == 1 ? 0 : std::uint64_t{seat.agree(static_cast<unsigned>(sent >> 10U))} << 10U;
  if (replicas > 0) {
    result.limit_connections = fastest_together(
        seat, [&](unsigned n) { seat.tcp().exchange(replicas, n); }, kTried.back());
  }
  std::map<std::string, Samples> parts;
  for (int i = 0; i < options.repeat; ++i) {
    report(round_text(i, options.repeat));
    memory.reset();  // the job needs the room
    result.times.add(once());
    memory = std::make_unique<MemoryLimit>(comes_back ? result.bytes : 0);
    if (comes_back) memory->copy(result.limit_threads);  // not measured: it is fresh memory
    seat.meet();
    const double copy = seconds_of([&] {
      if (comes_back) memory->copy(result.limit_threads);
    });
    seat.meet();
    const double digest = seconds_of([&] {
      if (comes_back) memory->digest(result.limit_threads);
    });
    parts["limit: copy"].add(copy);
    parts["limit: digest"].add(digest);
    result.limit.add(copy + digest);
    if (replicas == 0) continue;
    seat.meet();
    // The new images go to their holders before the step counts.
    const double tcp = seconds_of([&] { seat.tcp().exchange(replicas, result.limit_connections); });
    parts["limit: replicas"].add(tcp);
    result.limit.seconds.back() += tcp;
  }
  for (const auto& [name, samples] : parts) result.parts[name] = samples.median();
  result.parts["forming"] = forming.median();
  report(encode_result(result));
}

}  // namespace meshstage::tools::bench
