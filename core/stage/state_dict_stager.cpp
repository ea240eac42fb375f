#include <algorithm>
#include <functional>
#include <iostream>
#include <mutex>
#include <optional>
#include <vector>

#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/stage/host_block_impl.hpp>
#include <meshstage/core/stage/plan_impl.hpp>
#include <meshstage/core/stage/source_digests_impl.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>

namespace meshstage {
namespace {

// One staging: everything that its copying needs, taken at the call.
struct Job {
  StagingPlan plan;
  std::shared_ptr<detail::HostBlock> block;
  StagingSource source;
  std::optional<detail::SourceDigests> digests;
  Value result;
  Watermark progress;  // failed: stop

  Job(StagingPlan the_plan, std::shared_ptr<detail::HostBlock> the_block)
      : plan(std::move(the_plan)), block(std::move(the_block)) {}

  // Lets go of the source however it ends.
  void run(Pace* pace) {
    const auto taken = std::move(source);
    progress.throw_if_failed();
    plan.copy(taken, block->bytes(), progress, pace);
    if (digests) digests->check(taken);
  }
};

}  // namespace

class StateDictStager::Impl {
 public:
  explicit Impl(StagerOptions options)
      : options_(std::move(options)), memory_(std::make_shared<detail::StagerMemory>(options_)) {
    if (!options_.pin_memory) return;
    if (options_.pinner == nullptr) {
      refuse_pinning("there is no device to lock it for");
    } else {
      // Empty storages have no pages.
      plan_options_.own_pages_from = std::max<std::size_t>(options_.pin_memory_min_bytes, 1);
    }
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    if (!worker_) return;
    const auto gone = std::make_exception_ptr(Cancelled("the stager was destroyed"));
    for (const auto& job : under_way_) {
      if (const auto running = job.lock()) running->progress.fail(gone);
    }
    worker_->stop();
  }

  Value stage(const Value& state) {
    const std::lock_guard lock(mutex_);
    if (worker_) worker_->drain();
    const auto job = prepare(state);
    job->run(options_.pace);
    return std::move(job->result);
  }

  Work<Value> stage_async(const Value& state) {
    const std::lock_guard lock(mutex_);
    auto job = prepare(state);
    if (!worker_) worker_.emplace("mesh-stager");
    Promise<Value> promise;
    promise.on_cancel([weak = std::weak_ptr(job)] {
      const auto gone = std::make_exception_ptr(Cancelled("the staging was given up"));
      if (const auto running = weak.lock()) running->progress.fail(gone);
    });
    std::erase_if(under_way_, [](const auto& weak) { return weak.expired(); });
    under_way_.push_back(job);
    auto work = promise.work();
    worker_->post([job = std::move(job), promise, pace = options_.pace]() mutable {
      // Told outside the catch, which holds the exception: who gets it is the last to have it.
      std::exception_ptr error;
      try {
        job->run(pace);
        promise.set_value(std::move(job->result));
      } catch (...) {
        error = std::current_exception();
      }
      if (error) promise.set_error(std::move(error));
    });
    return work;
  }

  std::size_t cached_storages() const {
    const std::lock_guard lock(mutex_);
    return plan_ ? plan_->layout().segments.size() : 0;
  }
  std::uint64_t cached_bytes() const {
    const std::lock_guard lock(mutex_);
    return plan_ ? plan_->layout().storage_bytes : 0;
  }
  std::uint64_t plans() const {
    const std::lock_guard lock(mutex_);
    return plans_;
  }
  void clear() {
    const std::lock_guard lock(mutex_);
    if (worker_) worker_->drain();
    plan_.reset();
    tensors_.clear();
    block_.reset();
  }

 private:
  std::shared_ptr<Job> prepare(const Value& state) {
    auto source = plan_ ? plan_->capture(state) : std::nullopt;
    if (!source) {
      replan(state, block_);
      source = plan_->capture(state);
    }
    if (has_any(*block_, source->storages)) {
      // What was staged before is staged again: never over itself.
      replan(state, nullptr);
      source = plan_->capture(state);
    }
    auto job = std::make_shared<Job>(*plan_, block_);
    job->result = detail::replace_tensors(state, source->tensors, tensors_);
    if (options_.verify_source) job->digests.emplace(state, *source);
    job->source = std::move(*source);
    return job;
  }

  static bool has_any(const detail::HostBlock& block, const std::vector<Storage>& storages) {
    const auto less = std::less<const std::byte*>();
    const auto* const begin = block.bytes().data();
    const auto* const end = begin + block.bytes().size();
    return std::any_of(storages.begin(), storages.end(), [&](const Storage& s) {
      return s.nbytes() > 0 && less(s.data(), end) && less(begin, s.data() + s.nbytes());
    });
  }

  // Takes `block` if it is large enough. Nothing changes unless everything is there.
  void replan(const Value& state, std::shared_ptr<detail::HostBlock> block) {
    auto plan = StagingPlan::compile(state, plan_ ? &*plan_ : nullptr, plan_options_);
    if (block == nullptr || !fits(*block, plan.layout())) {
      block = std::make_shared<detail::HostBlock>(memory_, plan.layout().image_bytes);
      if (pinning()) pin(*block, plan.layout());
    }
    tensors_ = plan.place_tensors(detail::HostBlock::storages(block, plan.layout()));
    plan_ = std::move(plan);
    block_ = std::move(block);
    ++plans_;
  }

  [[nodiscard]] bool fits(const detail::HostBlock& block, const ImageLayout& layout) const {
    return block.bytes().size() >= layout.image_bytes &&
           (!pinning() || block.pinned(layout, plan_options_.own_pages_from));
  }
  [[nodiscard]] bool pinning() const { return plan_options_.own_pages_from != 0; }

  void pin(detail::HostBlock& block, const ImageLayout& layout) {
    try {
      block.pin(*options_.pinner, layout, plan_options_.own_pages_from);
    } catch (const Error& e) {
      refuse_pinning(e.what());
    }
  }
  // Once: nothing is pinned from now on.
  void refuse_pinning(const std::string& why) {
    plan_options_.own_pages_from = 0;
    const auto text = "pin_memory is ignored: " + why;
    if (options_.warn) {
      options_.warn(text);
    } else {
      std::cerr << "meshstage: " + text + "\n";
    }
  }

  const StagerOptions options_;
  const std::shared_ptr<detail::StagerMemory> memory_;
  mutable std::mutex mutex_;  // guards what follows
  PlanOptions plan_options_;
  std::optional<StagingPlan> plan_;
  std::shared_ptr<detail::HostBlock> block_;
  std::vector<Tensor> tensors_;  // of the plan, on the block
  std::uint64_t plans_ = 0;
  std::vector<std::weak_ptr<Job>> under_way_;
  std::optional<Worker> worker_;
};

StateDictStager::StateDictStager(StagerOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
StateDictStager::~StateDictStager() = default;
Value StateDictStager::stage(const Value& state) { return impl_->stage(state); }
Work<Value> StateDictStager::stage_async(const Value& state) { return impl_->stage_async(state); }
std::size_t StateDictStager::cached_storages() const { return impl_->cached_storages(); }
std::uint64_t StateDictStager::cached_bytes() const { return impl_->cached_bytes(); }
std::uint64_t StateDictStager::plans() const { return impl_->plans(); }
void StateDictStager::clear() { impl_->clear(); }

}  // namespace meshstage
