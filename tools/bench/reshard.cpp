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

/// The most bytes, of so many in all, that a rank receives or sends if each new rank sits where the
/// old rank of its number sat.
std::uint64_t moved(std::uint64_t bytes, int from, int to) {
  const auto shared = [&](int old_rank, int new_rank) {
    const double begin = std::max(old_rank / double(from), new_rank / double(to));
    const double end = std::min((old_rank + 1) / double(from), (new_rank + 1) / double(to));
    return std::max(0.0, end - begin);
  };
  double most = 0;
  for (int r = 0; r < std::max(from, to); ++r) {
    const double stays = r < from && r < to ? shared(r, r) : 0;
    if (r < to) most = std::max(most, 1.0 / to - stays);
    if (r < from) most = std::max(most, 1.0 / from - stays);
  }
  return static_cast<std::uint64_t>(most * static_cast<double>(bytes));
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
  std::uint64_t all_bytes = 0;
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
      all_bytes = result.bytes * static_cast<std::uint64_t>(options.to);
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
  result.limit_threads =
      seat.agree(comes_back ? fastest([&](unsigned n) { memory->copy(n); }, 16) : 1);
  // By rank 0, which is in either job: in MiB.
  const auto agree_on = [&](std::uint64_t bytes) {
    return std::uint64_t{seat.agree(static_cast<unsigned>(bytes >> 20U))} << 20U;
  };
  const std::uint64_t exchanged = agree_on(moved(all_bytes, options.from, options.to));
  const std::uint64_t of_each = options.to == 1 ? 0 : agree_on(result.bytes);
  result.limit_connections = seat.agree(fastest([&](unsigned n) {
    seat.meet();
    seat.tcp().exchange(exchanged, n);
  }));
  std::map<std::string, Samples> parts;
  for (int i = 0; i < options.repeat; ++i) {
    report("round " + std::to_string(i + 1) + " of " + std::to_string(options.repeat));
    memory.reset();  // the job needs the room
    result.times.add(once());
    memory = std::make_unique<MemoryLimit>(comes_back ? result.bytes : 0);
    seat.meet();
    const double copy = seconds_of([&] {
      if (comes_back) memory->copy(result.limit_threads);
    });
    seat.meet();
    const double digest = seconds_of([&] {
      if (comes_back) memory->digest(result.limit_threads);
    });
    seat.meet();
    const double tcp =
        seconds_of([&] { seat.tcp().exchange(exchanged, result.limit_connections); });
    seat.meet();
    // The new images go to their holders before the step counts.
    const double replicate =
        seconds_of([&] { seat.tcp().exchange(of_each, result.limit_connections); });
    parts["limit: copy"].add(copy);
    parts["limit: digest"].add(digest);
    parts["limit: exchange"].add(tcp);
    parts["limit: replicas"].add(replicate);
    result.limit.add(copy + digest + tcp + replicate);
  }
  for (const auto& [name, samples] : parts) result.parts[name] = samples.median();
  result.parts["forming"] = forming.median();
  report(encode_result(result));
}

}  // namespace meshstage::tools::bench
