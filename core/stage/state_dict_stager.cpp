#include <algorithm>
#include <functional>
#include <list>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/error/exception_of.hpp>
#include <meshstage/core/memory/copy_threads.hpp>
#include <meshstage/core/stage/copy_storages_impl.hpp>
#include <meshstage/core/stage/device_copies.hpp>
#include <meshstage/core/stage/device_snapshot.hpp>
#include <meshstage/core/stage/plan_impl.hpp>
#include <meshstage/core/stage/source_digests.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/stage/storage_cache_impl.hpp>

namespace meshstage {
namespace {

// That copy while the caller waits, and while it computes.
struct CopyThreads {
  explicit CopyThreads(unsigned asked) : alone(asked), beside(asked) {
    if (asked != 0) return;
    const auto processors = available_processors();
    alone = default_copy_threads(processors, Beside::kNothing);
    beside = default_copy_threads(processors, Beside::kTrainer);
  }
  unsigned alone, beside;
};

// One staging: everything that its copying needs, taken at the call.
struct Job {
  std::shared_ptr<const StagingSource> source;
  std::shared_ptr<const std::vector<Storage>> places;  // where its storages go
  std::optional<detail::DeviceCopies> devices;
  std::vector<DeviceReady> snapshot;  // taken of the source: the trainer's storages are free then
  std::optional<detail::SourceDigests> digests;
  Value result;
  Watermark progress;  // failed: stop

  // Lets go of the source however it ends.
  void run(const CopyOptions& how) {
    const auto taken = std::exchange(source, nullptr);
    progress.throw_if_failed();
    if (devices) {
      run_beside_devices(*taken, how);
    } else {
      detail::copy_storages(taken->storages, *places, progress, how);
    }
    for (const auto& [device, behind] : snapshot)
      (void)DeviceRuntime::of(device.type).kept();  // lets go of the trainer's storages
    if (digests) digests->check(*taken);
  }

 private:
  // What is not on a device is copied meanwhile.
  void run_beside_devices(const StagingSource& taken, const CopyOptions& how) {
    std::vector<Storage> from, to;
    for (std::size_t i = 0; i < places->size(); ++i) {
      if (!taken.storages[i].device().is_cpu()) continue;
      from.push_back(taken.storages[i]);
      to.push_back((*places)[i]);
    }
    detail::copy_storages(from, to, progress, how);
    devices->wait_all(progress);
  }
};

// A structure that was staged before, and where its storages were placed.
struct Known {
  detail::PlannedState state;
  // The last time, if nothing else was placed since: the storages, their places, and the tensors
  // there. Remembering a storage keeps its identity from being another's.
  std::vector<WeakStorage> storages = {};
  std::shared_ptr<const std::vector<Storage>> places = nullptr;
  std::vector<Tensor> tensors = {};
  bool counted = false;

  void forget_places() {
    storages.clear();
    places.reset();
    tensors.clear();
  }
  [[nodiscard]] bool placed(const StagingSource& source) const {
    return places != nullptr && places->size() == source.storages.size() &&
           std::equal(
               storages.begin(), storages.end(), source.storages.begin(), source.storages.end(),
               [](const WeakStorage& a, const Storage& b) { return a.identity() == b.identity(); });
  }
};

// So many structures are known at a time: a state dict staged in parts, one call for each, is
// matched, not taken apart anew.
constexpr std::size_t kKnownStructures = 4;

// The source's storages, and which storages of the state dict each is the memory of.
std::vector<detail::CacheSource> cache_sources(const detail::PlannedState& state,
                                               const StagingSource& source) {
  std::vector<detail::CacheSource> sources;
  for (const auto& storage : source.storages) sources.push_back({storage, {}});
  for (std::size_t i = 0; i < source.tensors.size(); ++i) {
    auto& [storage, members] = sources[state.tensors[i].storage];
    members.push_back(source.tensors[i].storage());
  }
  for (auto& [storage, members] : sources) {
    const auto less = [](const Storage& a, const Storage& b) {
      return std::less<>()(a.identity(), b.identity());
    };
    std::sort(members.begin(), members.end(), less);
    members.erase(std::unique(members.begin(), members.end()), members.end());
    if (std::binary_search(members.begin(), members.end(), storage, less)) members = {storage};
  }
  return sources;
}

}  // namespace

class StateDictStager::Impl {
 public:
  explicit Impl(StagerOptions options) : options_(std::move(options)), cache_(options_) {
    const MutexLock lock(mutex_);
    make_snapshot();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    if (!worker_) return;
    const auto gone = exception_of([] { return Cancelled("the stager was destroyed"); });
    for (const auto& job : under_way_) {
      if (const auto running = job.lock()) running->progress.fail(gone);
    }
    worker_->stop();
  }

  Value stage(const Value& state) {
    const MutexLock lock(mutex_);
    if (worker_) worker_->drain();
    const auto job = prepare(state, WithSnapshot::kNo);
    job->run({.pace = options_.pace, .crew = &crew_, .hands = threads_.alone});
    return std::move(job->result);
  }

  Work<Value> stage_async(const Value& state) {
    const MutexLock lock(mutex_);
    auto job = prepare(state, WithSnapshot::kIfAsked);
    if (!worker_) worker_.emplace("mesh-stager");
    Promise<Value> promise;
    promise.on_cancel([weak = std::weak_ptr(job)] {
      const auto gone = std::make_exception_ptr(Cancelled("the staging was given up"));
      if (const auto running = weak.lock()) running->progress.fail(gone);
    });
    std::erase_if(under_way_, [](const auto& weak) { return weak.expired(); });
    under_way_.push_back(job);
    auto work = promise.work();
    const CopyOptions how{.pace = options_.pace, .crew = &crew_, .hands = threads_.beside};
    worker_->post([job = std::move(job), promise, how]() mutable {
      // Told outside the catch, which holds the exception: who gets it is the last to have it.
      std::exception_ptr error;
      try {
        job->run(how);
        promise.set_value(std::move(job->result));
      } catch (...) {
        error = std::current_exception();
      }
      if (error) promise.set_error(std::move(error));
    });
    return work;
  }

  void before_update(const TrainerStream& stream) {
    const MutexLock lock(mutex_);
    const auto staged = staged_.find(stream.device.index);
    if (stream.device.is_cpu() || staged == staged_.end()) return;
    auto& runtime = DeviceRuntime::of(stream.device.type);
    runtime.require_not_capturing(stream);
    runtime.hold(stream, staged->second);
  }

  std::size_t cached_storages() const {
    const MutexLock lock(mutex_);
    return cache_.storages();
  }
  std::uint64_t cached_bytes() const {
    const MutexLock lock(mutex_);
    return cache_.bytes();
  }
  std::uint64_t plans() const {
    const MutexLock lock(mutex_);
    return plans_;
  }
  void clear() {
    const MutexLock lock(mutex_);
    if (worker_) worker_->drain();
    known_.clear();
    cache_.clear();
    make_snapshot();
  }

 private:
  enum class WithSnapshot : std::uint8_t { kNo, kIfAsked };

  void make_snapshot() MESHSTAGE_REQUIRES(mutex_) {
    snapshot_.reset();
    if (options_.snapshot != Snapshot::kOff)
      snapshot_.emplace(options_.snapshot_max_bytes, detail::warnings_of(options_));
  }

  std::shared_ptr<Job> prepare(const Value& state, WithSnapshot with) MESHSTAGE_REQUIRES(mutex_) {
    auto job = std::make_shared<Job>();
    auto source = std::make_shared<StagingSource>();
    auto& known = find(state, *source);
    source->ready = detail::record_ready(source->storages, options_.streams);
    if (!known.placed(*source) || cache_.any_dead(known.places->size())) {
      place(known, *source);
    } else {
      cache_.release_free_blocks();
    }
    if (!std::exchange(known.counted, true)) ++plans_;
    if (with == WithSnapshot::kIfAsked && snapshot_ &&
        snapshot_->take(*source, Deadline::never())) {
      job->snapshot = source->ready;
    }
    job->source = std::move(source);
    job->places = known.places;
    if (!job->source->ready.empty()) issue(*job);
    job->result = detail::replace_tensors(known.state, state, known.tensors);
    if (options_.verify_source) job->digests.emplace(state, *job->source);
    return job;
  }

  // Everything that devices copy, before the call returns.
  void issue(Job& job) MESHSTAGE_REQUIRES(mutex_) {
    const auto& ready = job.source->ready;
    std::vector<detail::DevicePlace> places;
    for (std::size_t i = 0; i < job.places->size(); ++i) {
      const auto& from = job.source->storages[i];
      if (!from.device().is_cpu()) places.push_back({&from, (*job.places)[i].bytes()});
    }
    auto keep = std::make_shared<std::pair<decltype(job.source), decltype(job.places)>>(job.source,
                                                                                        job.places);
    job.devices.emplace(places, ready, streams_, std::move(keep));
    for (const auto& one : ready) {
      staged_[one.device.index] =
          job.snapshot.empty() ? job.devices->staged(one.device) : one.event;
    }
  }

  // The structure of `state`, which becomes the newest, and what is to be copied of it.
  Known& find(const Value& state, StagingSource& source) MESHSTAGE_REQUIRES(mutex_) {
    for (auto it = known_.begin(); it != known_.end(); ++it) {
      auto matched = detail::match(it->state, state);
      if (!matched) continue;
      source = std::move(*matched);
      known_.splice(known_.begin(), known_, it);
      return known_.front();
    }
    auto flat = detail::flatten(state);
    detail::require_devices(flat);
    Known fresh{detail::remember(std::move(flat))};
    auto matched = detail::match(fresh.state, state);
    if (!matched) throw InvalidState("the state dict changed while it was read");
    source = std::move(*matched);
    known_.push_front(std::move(fresh));
    if (known_.size() > kKnownStructures) known_.pop_back();
    return known_.front();
  }

  void place(Known& known, const StagingSource& source) MESHSTAGE_REQUIRES(mutex_) {
    // They hold the places that the cache is to use again.
    for (auto& other : known_) other.forget_places();
    const auto sources = cache_sources(known.state, source);
    auto places = cache_.place(sources);
    std::vector<Tensor> tensors;
    tensors.reserve(known.state.tensors.size());
    for (const auto& t : known.state.tensors) {
      tensors.push_back(
          Tensor::on_storage(places[t.storage], t.dtype, t.shape, t.strides, t.offset));
    }
    for (const auto& storage : source.storages) known.storages.emplace_back(storage);
    known.tensors = std::move(tensors);
    known.places = std::make_shared<const std::vector<Storage>>(std::move(places));
  }

  const StagerOptions options_;
  const CopyThreads threads_{options_.copy_threads};
  Crew crew_{"mesh-copy", threads_.alone};
  mutable Mutex mutex_;
  detail::StorageCache cache_ MESHSTAGE_GUARDED_BY(mutex_);
  std::list<Known> known_ MESHSTAGE_GUARDED_BY(mutex_);  // the newest first
  detail::DeviceStreams streams_ MESHSTAGE_GUARDED_BY(mutex_);
  std::optional<detail::DeviceSnapshot> snapshot_ MESHSTAGE_GUARDED_BY(mutex_);
  std::map<std::int16_t, DeviceEvent> staged_
      MESHSTAGE_GUARDED_BY(mutex_);  // the latest staging's, by index of the device
  std::uint64_t plans_ MESHSTAGE_GUARDED_BY(mutex_) = 0;
  std::vector<std::weak_ptr<Job>> under_way_ MESHSTAGE_GUARDED_BY(mutex_);
  std::optional<Worker> worker_ MESHSTAGE_GUARDED_BY(mutex_);
};

StateDictStager::StateDictStager(StagerOptions options) : impl_(new Impl(std::move(options))) {}
StateDictStager::~StateDictStager() = default;
Value StateDictStager::stage(const Value& state) { return impl_->stage(state); }
Work<Value> StateDictStager::stage_async(const Value& state) { return impl_->stage_async(state); }
void StateDictStager::before_update(const TrainerStream& stream) { impl_->before_update(stream); }
std::size_t StateDictStager::cached_storages() const { return impl_->cached_storages(); }
std::uint64_t StateDictStager::cached_bytes() const { return impl_->cached_bytes(); }
std::uint64_t StateDictStager::plans() const { return impl_->plans(); }
void StateDictStager::clear() { impl_->clear(); }

}  // namespace meshstage
