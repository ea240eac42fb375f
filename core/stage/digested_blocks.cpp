#include <meshstage/core/stage/digested_blocks.hpp>

#include <algorithm>
#include <map>

namespace meshstage::detail {
namespace {

// The runs of one block, if all of them are of one device that can digest them.
class BlockRuns {
 public:
  void begin(std::uint64_t at, std::uint64_t end) {
    at_ = at;
    end_ = end;
    ours_ = true;
    runs_.clear();
  }
  void add(const ImageSegment& segment, const Storage& storage) {
    const auto from = std::max(segment.offset, at_);
    const auto to = std::min(segment.offset + segment.bytes, end_);
    const auto* const source = storage.data() + (from - segment.offset);
    const bool aligned = (from - at_) % kDigestAlignment == 0 &&
                         reinterpret_cast<std::uintptr_t>(source) % kDigestAlignment == 0;
    if (runs_.empty()) device_ = storage.device();
    ours_ = ours_ && aligned && storage.device() == device_ && can_digest(device_);
    if (ours_) runs_.push_back({from - at_, source, to - from});
  }
  [[nodiscard]] bool ours() const { return ours_ && !runs_.empty(); }
  [[nodiscard]] Device device() const { return device_; }
  [[nodiscard]] const std::vector<DeviceRun>& runs() const { return runs_; }

 private:
  bool can_digest(Device device) {
    if (device.is_cpu()) return false;
    const auto [it, fresh] = can_.try_emplace(device.index);
    if (fresh) it->second = DeviceRuntime::of(device.type).can_digest(device);
    return it->second;
  }
  std::uint64_t at_ = 0, end_ = 0;  // of the block, in the image
  bool ours_ = true;
  Device device_;
  std::vector<DeviceRun> runs_;
  std::map<std::int16_t, bool> can_;  // by device's index
};

}  // namespace

DigestedBlocks digested_blocks(const ImageLayout& layout, std::span<const Storage> storages) {
  DigestedBlocks all;
  BlockRuns runs;
  auto first = layout.segments.begin();
  for (auto at = layout.data_begin; at < layout.trailer_begin; at += layout.block_bytes) {
    const auto end = std::min(at + layout.block_bytes, layout.trailer_begin);
    auto& where = all.where.emplace_back();
    // The values are the host's.
    if (end > layout.values_begin || end - at < kLeastDigestedBytes) continue;
    while (first != layout.segments.end() && first->offset + first->bytes <= at) ++first;
    runs.begin(at, end);
    for (auto s = first; s != layout.segments.end() && s->offset < end; ++s) {
      if (s->bytes > 0) runs.add(*s, storages[s->storage]);
    }
    if (!runs.ours()) continue;
    auto on = std::find_if(all.devices.begin(), all.devices.end(),
                           [&](const auto& one) { return one.device == runs.device(); });
    if (on == all.devices.end()) on = all.devices.insert(on, {runs.device(), {}, {}});
    where = {static_cast<std::uint32_t>(on - all.devices.begin()),
             static_cast<std::uint32_t>(on->blocks.size())};
    on->blocks.push_back({end - at, runs.runs().size()});
    on->runs.insert(on->runs.end(), runs.runs().begin(), runs.runs().end());
  }
  return all;
}

std::shared_ptr<const DigestedBlocks> KeptBlocks::of(const ImageLayout& layout,
                                                     std::span<const Storage> storages) {
  // The CPU's may lie anywhere: no device digests them.
  const auto begin_of = [](const Storage& storage) -> const std::byte* {
    return storage.device().is_cpu() ? nullptr : storage.data();
  };
  const MutexLock lock(mutex_);
  if (blocks_ != nullptr &&
      std::equal(begins_.begin(), begins_.end(), storages.begin(), storages.end(),
                 [&](const std::byte* begin, const Storage& s) { return begin == begin_of(s); })) {
    return blocks_;
  }
  blocks_ = nullptr;  // should what follows throw
  begins_.clear();
  for (const auto& storage : storages) begins_.push_back(begin_of(storage));
  blocks_ = std::make_shared<const DigestedBlocks>(digested_blocks(layout, storages));
  return blocks_;
}

}  // namespace meshstage::detail
