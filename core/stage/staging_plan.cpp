#include <algorithm>
#include <bit>
#include <cstring>
#include <map>

#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/bytes.hpp>
#include <meshstage/core/image/copy.hpp>
#include <meshstage/core/image/planner.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/image/trailer.hpp>
#include <meshstage/core/stage/plan_impl.hpp>
#include <meshstage/core/stage/staging_plan.hpp>

namespace meshstage {
namespace {

// Progress is published in steps of about this many bytes.
constexpr std::uint64_t kProgressBytes = kPaceBytes;

void check_size(std::span<const std::byte> image, const ImageLayout& layout) {
  if (image.size() < layout.image_bytes) {
    throw InvalidArgument("an image of " + std::to_string(layout.image_bytes) +
                          " bytes does not fit " + std::to_string(image.size()));
  }
}

[[noreturn]] void throw_mismatch() {
  throw StructureMismatch("the staging plan does not fit this state dict; compile() a new one");
}

// What a final image has in common with others.
ImageShares shares_of(const ImageLayout& layout, std::span<const std::byte> image) {
  std::map<std::vector<std::size_t>, Digest> known;  // two ranks often share both ways
  const auto digest = [&](const std::vector<std::size_t>& segments) {
    const auto [it, fresh] = known.try_emplace(segments);
    if (fresh) {
      std::vector<ImageRange> ranges;
      for (const auto i : segments)
        ranges.push_back({layout.segments[i].offset, layout.segments[i].bytes});
      it->second = digest_ranges(image, ranges);
    }
    return it->second;
  };
  ImageShares shares;
  for (const auto& part : layout.shared)
    shares.left_out.push_back({part.rank, digest(part.segments)});
  for (const auto& part : layout.completes)
    shares.completes.push_back({part.rank, digest(part.segments)});
  return shares;
}

// Writes an image front to back and says how far it is.
class Writer {
 public:
  Writer(std::span<std::byte> image, std::uint64_t begin, std::uint64_t end, Watermark& progress,
         Pace* pace)
      : image_(image),
        at_(begin),
        published_(begin),
        large_(end - begin >= kLarge),
        progress_(progress),
        pace_(pace) {
    progress_.advance(begin);
  }
  void zero_to(std::uint64_t offset) {
    if (offset > at_) std::memset(image_.data() + at_, 0, offset - at_);
    at_ = std::max(at_, offset);
  }
  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const auto n = std::min<std::uint64_t>(bytes.size(), kProgressBytes);
      if (pace_ != nullptr) {
        pace_->before(n, progress_);
        progress_.throw_if_failed();
      }
      detail::copy_bytes(image_.subspan(at_, n), bytes.first(n), large_ && n >= kStreamed);
      bytes = bytes.subspan(n);
      at_ += n;
      if (at_ - published_ >= kProgressBytes) publish();
    }
  }
  void publish() {
    progress_.throw_if_failed();
    progress_.advance(at_);
    published_ = at_;
  }

 private:
  // An image that does not stay in the cache anyway is written past it, but for its small parts.
  static constexpr std::uint64_t kLarge = std::uint64_t{8} << 20U;
  static constexpr std::uint64_t kStreamed = 2048;
  std::span<std::byte> image_;
  std::uint64_t at_, published_;
  bool large_;
  Watermark& progress_;
  Pace* pace_;
};

}  // namespace

StagingPlan StagingPlan::compile(const Value& state, const StagingPlan* previous,
                                 PlanOptions options) {
  if (options.block_bytes < 4096 || !std::has_single_bit(options.block_bytes)) {
    throw InvalidArgument("block_bytes = " + std::to_string(options.block_bytes) +
                          ": must be a power of two from 4096");
  }
  for (const auto* list : {&options.shared, &options.completes}) {
    for (const auto& part : *list) {
      if (part.rank >= 0) continue;
      throw InvalidArgument("storages shared with rank " + std::to_string(part.rank) +
                            ": ranks count from 0");
    }
  }
  auto flat = detail::flatten(state);
  auto impl = std::make_shared<Impl>();
  const detail::LayoutOptions how{options.block_bytes, options.own_pages_from, options.shared,
                                  options.completes};
  impl->own_pages_from = options.own_pages_from;
  if (previous == nullptr || previous->impl_->own_pages_from != options.own_pages_from) {
    impl->layout = detail::make_layout(flat, how, nullptr);
  } else {
    const detail::PreviousLayout before{previous->impl_->layout, previous->impl_->state.storages};
    impl->layout = detail::make_layout(flat, how, &before);
  }
  impl->state = detail::remember(std::move(flat));
  impl->segments.resize(impl->layout.segments.size());
  for (const auto& segment : impl->layout.segments) impl->segments[segment.storage] = &segment;
  return StagingPlan(std::move(impl));
}

bool StagingPlan::matches(const Value& state) const { return capture(state).has_value(); }

std::optional<StagingSource> StagingPlan::capture(const Value& state) const {
  auto source = detail::match(impl_->state, state);
  if (!source) return std::nullopt;
  const auto used = static_cast<std::uint64_t>(source->values.size());
  const auto room = impl_->layout.trailer_begin - impl_->layout.values_begin;
  if (8 + used > room) return std::nullopt;
  // The entry: used length, the stream, zeros.
  source->values.insert(source->values.begin(), 8, std::byte{});
  detail::store(std::span(source->values), 0, used);
  source->values.resize(room);
  return source;
}

const ImageLayout& StagingPlan::layout() const noexcept { return impl_->layout; }

void StagingPlan::write_manifest(std::span<std::byte> image) const {
  check_size(image, impl_->layout);
  std::memcpy(image.data(), impl_->layout.manifest.data(), impl_->layout.manifest.size());
}

void StagingPlan::copy(const StagingSource& source, std::span<std::byte> image, Watermark& progress,
                       Pace* pace) const {
  const auto& layout = impl_->layout;
  check_size(image, layout);
  if (source.storages.size() != layout.segments.size() ||
      source.values.size() != layout.trailer_begin - layout.values_begin) {
    throw_mismatch();
  }
  Writer writer(image, layout.data_begin, layout.trailer_begin, progress, pace);
  for (const auto& segment : layout.segments) {
    if (segment.bytes == 0) continue;
    writer.zero_to(segment.offset);
    writer.write(source.storages[segment.storage].bytes());
  }
  writer.zero_to(layout.values_begin);
  writer.write(source.values);
  writer.publish();
}

void StagingPlan::copy(const Value& state, std::span<std::byte> image, Watermark& progress) const {
  const auto source = capture(state);
  if (!source) throw_mismatch();
  copy(*source, image, progress);
}

ImageInfo StagingPlan::seal(const ImageIdentity& identity, std::span<std::byte> image,
                            Watermark& progress, Deadline deadline) const {
  const auto& layout = impl_->layout;
  check_size(image, layout);
  for (const auto* list : {&layout.shared, &layout.completes}) {
    for (const auto& part : *list) {
      if (part.rank != identity.rank && part.rank < identity.world_size) continue;
      throw InvalidArgument("rank " + std::to_string(identity.rank) + " of " +
                            std::to_string(identity.world_size) + " shares storages with rank " +
                            std::to_string(part.rank));
    }
  }
  BlockDigests digests(layout.block_bytes, layout.digested_bytes());
  for (std::size_t i = 0; i < digests.block_count(); ++i) {
    const auto begin = layout.data_begin + i * layout.block_bytes;
    const auto bytes = digests.block_size(i);
    progress.wait(begin + bytes, deadline);
    digests.add(i, image.subspan(begin, bytes));
  }
  ImageInfo info;
  info.identity = identity;
  info.image_bytes = layout.image_bytes;
  info.manifest_bytes = layout.data_begin;
  info.block_bytes = layout.block_bytes;
  info.manifest_digest = layout.manifest_digest;
  info.shared_bytes = layout.shared_bytes;
  detail::write_trailer(image.first(layout.image_bytes), digests.digests(),
                        shares_of(layout, image), info);
  progress.advance(layout.image_bytes);
  return info;
}

Value StagingPlan::rebuild(const Value& state, std::span<std::byte> image,
                           std::shared_ptr<const void> owner, StorageTraits traits) const {
  check_size(image, impl_->layout);
  const auto source = capture(state);
  if (!source) throw_mismatch();
  std::vector<Storage> storages;
  for (const auto* segment : impl_->segments) {
    storages.push_back(
        Storage::wrap(image.data() + segment->offset, segment->bytes, owner, traits));
  }
  return detail::replace_tensors(state, source->tensors, place_tensors(storages));
}

std::vector<Tensor> StagingPlan::place_tensors(std::span<const Storage> storages) const {
  if (storages.size() != impl_->segments.size()) {
    throw InvalidArgument(std::to_string(storages.size()) + " storages for a plan of " +
                          std::to_string(impl_->segments.size()));
  }
  std::vector<Tensor> tensors;
  for (const auto& t : impl_->state.tensors) {
    tensors.push_back(
        Tensor::on_storage(storages[t.storage], t.dtype, t.shape, t.strides, t.offset));
  }
  return tensors;
}

}  // namespace meshstage
