// The rank processes of reshard: a job ends, and goes on with another number of ranks.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/copy_threads.hpp>
#include <meshstage/dtensor/dtensor.hpp>
#include <meshstage/dtensor/node.hpp>
#include <meshstage/mesh/device_mesh.hpp>

#include "tools/bench/ranks.hpp"

namespace meshstage::tools::bench {
namespace {

using Clock = std::chrono::steady_clock;

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

/// When this rank passed the points of a recovery.
class Passed {
 public:
  [[nodiscard]] Observer observer() {
    return [this](const PointEvent& event) {
      const MutexLock lock(mutex_);
      at_[event.point] = Clock::now();
    };
  }
  /// Adds the parts of a recover() that began and ended so.
  void add_parts(Clock::time_point begin, Clock::time_point end,
                 std::map<std::string, Samples>& parts) const {
    const MutexLock lock(mutex_);
    for (const auto& [part, until] :
         {std::pair{"look", Point::kChoiceLearned}, std::pair{"assemble", Point::kOwnWriting},
          std::pair{"stage", Point::kOwnSealed}}) {
      parts[part].add(seconds_between(begin, at_.at(until)));
      begin = at_.at(until);
    }
    parts["vote"].add(seconds_between(begin, end));
  }

 private:
  static double seconds_between(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
  }
  mutable Mutex mutex_;
  std::map<Point, Clock::time_point> at_ MESHSTAGE_GUARDED_BY(mutex_);
};

/// The rank whose replicas `rank` of `world` ranks holds.
int ward_of(int rank, int world) { return (rank + world - world / 2) % world; }

/// The slots that the new job's first step needs at a rank, each as bytes that a slot of the old
/// job has already, and bytes of the new image.
std::vector<std::pair<std::uint64_t, std::uint64_t>> slots_of(const Options& options, int rank,
                                                              std::uint64_t old_bytes,
                                                              std::uint64_t new_bytes) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> slots{{old_bytes, new_bytes}};
  if (options.to == 1) return slots;
  const bool same_ward = rank < options.from && options.from > 1 &&
                         ward_of(rank, options.from) == ward_of(rank, options.to);
  slots.emplace_back(same_ward ? old_bytes : 0, new_bytes);
  return slots;
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
  const bool comes_back = rank < options.to;
  int jobs = 0;
  std::uint64_t old_bytes = 0;
  std::map<std::string, Samples> parts;
  const auto together = [&](const char* part, const std::function<void()>& what) {
    parts[part].add(seat.together([&] {
      if (comes_back) what();
    }));
  };
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
      old_bytes = Changes(state, 1).state_bytes();
      Checkpointer old(in_world(options.from));
      static_cast<void>(old.recover(state));
      Staging step = old.stage(state, 1);
      if (step.outcome().get() != Outcome::kComplete) throw InvalidState("a step is not complete");
      if (options.files) step.persisted().get();
    }
    if (options.files) {
      together("limit: prove", [&] {
        static_cast<void>(digest_files(job.directory, static_cast<unsigned>(rank),
                                       static_cast<unsigned>(options.to), result.threads));
      });
    }
    seat.meet();
    double seconds = 0;
    if (comes_back) {
      Dict state = part_of(options, rank, options.to);
      result.bytes = Changes(state, 1).state_bytes();
      Passed passed;
      auto anew_options = in_world(options.to);
      anew_options.observer = passed.observer();
      std::unique_ptr<Checkpointer> anew;
      parts["forming"].add(
          seconds_of([&] { anew = std::make_unique<Checkpointer>(anew_options); }));
      const auto begin = Clock::now();
      const Recovered recovered = anew->recover(state);
      const auto end = Clock::now();
      seconds = std::chrono::duration<double>(end - begin).count();
      passed.add_parts(begin, end, parts);
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
  parts.clear();
  report("the limit");
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
  for (int i = 0; i < options.repeat; ++i) {
    report(round_text(i, options.repeat));
    memory.reset();  // the job needs the room
    result.times.add(once());
    std::vector<std::unique_ptr<SlotLimit>> slots;
    if (comes_back) {
      for (const auto& [had, bytes] : slots_of(options, rank, old_bytes, result.bytes)) {
        slots.push_back(
            std::make_unique<SlotLimit>(seat.checkpointer().vault_directory, had, bytes));
      }
    }
    together("limit: first touch", [&] {
      for (const auto& slot : slots) slot->grow();
    });
    slots.clear();
    memory = std::make_unique<MemoryLimit>(comes_back ? result.bytes : 0);
    if (comes_back) memory->copy(result.limit_threads);  // not measured: it is fresh memory
    together("limit: copy", [&] { memory->copy(result.limit_threads); });
    together("limit: digest", [&] { memory->digest(result.limit_threads); });
    const auto last = [&parts](const char* part) { return parts[part].seconds.back(); };
    // The tensors are written, and the image of them. Holders digest what they receive.
    const double digests = options.to == 1 ? 1 : 2;
    result.limit.add((options.files ? last("limit: prove") : last("limit: digest")) +
                     2 * last("limit: copy") + last("limit: first touch") +
                     digests * last("limit: digest"));
    if (replicas == 0) continue;
    // The new images go to their holders before the step counts.
    parts["limit: replicas"].add(
        seat.together([&] { seat.tcp().exchange(replicas, result.limit_connections); }));
    result.limit.seconds.back() += last("limit: replicas");
  }
  for (const auto& [name, samples] : parts) result.parts[name] = samples.median();
  report(encode_result(result));
}

}  // namespace meshstage::tools::bench
