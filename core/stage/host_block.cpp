#include <algorithm>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/bytes_impl.hpp>
#include <meshstage/core/stage/host_block_impl.hpp>

namespace meshstage::detail {
namespace {

constexpr std::size_t kPage = 4096;

// The whole pages of each run of neighbouring segments of at least `min_bytes`: [begin, end) within
// the image. The layout gives these pages to nobody else.
std::vector<std::pair<std::uint64_t, std::uint64_t>> page_runs(const ImageLayout& layout,
                                                               std::size_t min_bytes) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> runs;
  for (const auto& segment : layout.segments) {  // ascending offsets
    if (segment.bytes == 0 || segment.bytes < min_bytes) continue;
    const auto begin = segment.offset;
    const auto end = round_up(begin + segment.bytes, kPage);
    if (!runs.empty() && runs.back().second == begin) {
      runs.back().second = end;
    } else {
      runs.emplace_back(begin, end);
    }
  }
  return runs;
}

}  // namespace

StagerMemory::StagerMemory(const StagerOptions& options)
    : resource_(options.memory != nullptr ? options.memory : &host_memory()) {
  if (options.share_memory) {
    if (options.memory != nullptr) {
      throw InvalidArgument(
          "StagerOptions: share_memory makes its own memory; leave `memory` null (max_bytes caps "
          "it)");
    }
    resource_ = &shared_.emplace();
  }
  if (options.max_bytes != 0)
    resource_ = &capped_.emplace(*resource_, options.max_bytes, "the stager");
}

HostBlock::HostBlock(std::shared_ptr<StagerMemory> memory, std::size_t bytes)
    : memory_(std::move(memory)),
      bytes_(round_up(bytes, kPage)),
      data_(static_cast<std::byte*>(memory_->resource().allocate(bytes_, kPage))) {}

HostBlock::~HostBlock() {
  pins_.clear();
  memory_->resource().deallocate(data_, bytes_, kPage);
}

void HostBlock::pin(MemoryPinner& pinner, const ImageLayout& layout, std::size_t min_bytes) {
  std::vector<PinnedPages> pins;
  for (const auto& [begin, end] : page_runs(layout, min_bytes))
    pins.emplace_back(pinner, bytes().subspan(begin, end - begin));
  pins_ = std::move(pins);
}

bool HostBlock::locked(std::span<const std::byte> range) const {
  return !range.empty() && std::any_of(pins_.begin(), pins_.end(), [&](const PinnedPages& pin) {
    const auto pages = pin.pages();
    return pages.data() <= range.data() &&
           range.data() + range.size() <= pages.data() + pages.size();
  });
}

bool HostBlock::pinned(const ImageLayout& layout, std::size_t min_bytes) const {
  const auto runs = page_runs(layout, min_bytes);
  return std::all_of(runs.begin(), runs.end(), [&](const auto& run) {
    return locked(bytes().subspan(run.first, run.second - run.first));
  });
}

std::vector<Storage> HostBlock::storages(const std::shared_ptr<HostBlock>& self,
                                         const ImageLayout& layout) {
  std::vector<Storage> storages(layout.segments.size());
  const auto* shared = self->memory_->shared();
  for (const auto& segment : layout.segments) {
    const auto range = self->bytes().subspan(segment.offset, segment.bytes);
    StorageTraits traits;
    traits.pinned = self->locked(range);
    traits.shared = shared != nullptr;
    if (shared != nullptr) traits.location = shared->locate(range.data());
    storages[segment.storage] = Storage::wrap(range.data(), range.size(), self, std::move(traits));
  }
  return storages;
}

}  // namespace meshstage::detail
