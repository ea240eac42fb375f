#include <mutex>

#include <meshstage/core/stage/plan_impl.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>

namespace meshstage {
namespace {

// A run of bytes from a memory resource, which it goes back to with its last user.
class HostBlock {
 public:
  HostBlock(MemoryResource& memory, std::size_t bytes)
      : memory_(memory),
        bytes_(bytes),
        data_(static_cast<std::byte*>(memory.allocate(bytes, kHostAlignment))) {}
  HostBlock(const HostBlock&) = delete;
  HostBlock& operator=(const HostBlock&) = delete;
  ~HostBlock() { memory_.deallocate(data_, bytes_, kHostAlignment); }
  [[nodiscard]] std::span<std::byte> bytes() const { return {data_, bytes_}; }

 private:
  MemoryResource& memory_;
  std::size_t bytes_;
  std::byte* data_;
};

}  // namespace

class StateDictStager::Impl {
 public:
  explicit Impl(const StagerOptions& options)
      : memory_(options.memory != nullptr ? *options.memory : host_memory()) {}

  Value stage(const Value& state) {
    const std::lock_guard lock(mutex_);
    auto source = plan_ ? plan_->capture(state) : std::nullopt;
    if (!source) {
      replan(state);
      source = plan_->capture(state);
    }
    Watermark progress;
    plan_->copy(*source, block_->bytes(), progress);
    return detail::replace_tensors(state, source->tensors, tensors_);
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
    plan_.reset();
    tensors_.clear();
    block_.reset();
  }

 private:
  // Nothing changes unless everything is there.
  void replan(const Value& state) {
    auto plan = StagingPlan::compile(state, plan_ ? &*plan_ : nullptr);
    auto block = block_;
    const auto bytes = plan.layout().image_bytes;
    if (block == nullptr || block->bytes().size() < bytes)
      block = std::make_shared<HostBlock>(memory_, bytes);
    tensors_ = plan.place_tensors(block->bytes(), block);
    plan_ = std::move(plan);
    block_ = std::move(block);
    ++plans_;
  }

  MemoryResource& memory_;
  mutable std::mutex mutex_;  // guards what follows
  std::optional<StagingPlan> plan_;
  std::shared_ptr<HostBlock> block_;
  std::vector<Tensor> tensors_;  // of the plan, on the block
  std::uint64_t plans_ = 0;
};

StateDictStager::StateDictStager(StagerOptions options) : impl_(std::make_unique<Impl>(options)) {}
StateDictStager::~StateDictStager() = default;
Value StateDictStager::stage(const Value& state) { return impl_->stage(state); }
std::size_t StateDictStager::cached_storages() const { return impl_->cached_storages(); }
std::uint64_t StateDictStager::cached_bytes() const { return impl_->cached_bytes(); }
std::uint64_t StateDictStager::plans() const { return impl_->plans(); }
void StateDictStager::clear() { impl_->clear(); }

}  // namespace meshstage
