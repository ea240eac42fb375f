#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <thread>

#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/bytes.hpp>
#include <meshstage/core/image/planner.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/image/trailer.hpp>
#include <meshstage/core/stage/device_copies.hpp>
#include <meshstage/core/stage/image_copy_impl.hpp>
#include <meshstage/core/stage/plan_impl.hpp>
#include <meshstage/core/stage/staging_plan.hpp>

namespace meshstage {
namespace {

void check_size(std::span<const std::byte> image, const ImageLayout& layout) {
  if (image.size() < layout.image_bytes) {
    throw InvalidArgument("an image of " + std::to_string(layout.image_bytes) +
                          " bytes does not fit " + std::to_string(image.size()));
  }
}

[[noreturn]] void throw_mismatch() {
  throw StructureMismatch("the staging plan does not fit this state dict; compile() a new one");
}

void check_digests(const BlockDigests& digests, const ImageLayout& layout) {
  const BlockDigests own(layout.block_bytes, layout.digested_bytes());
  if (digests.block_bytes() == own.block_bytes() && digests.first_block() == 0 &&
      digests.block_count() == own.block_count() &&
      (own.block_count() == 0 ||
       digests.block_size(own.block_count() - 1) == own.block_size(own.block_count() - 1))) {
    return;
  }
  throw InvalidArgument("the block digests are of another plan");
}

// What a final image borrows and lends.
Loans loans_of(const ImageLayout& layout, std::span<const std::byte> image) {
  std::map<std::vector<std::size_t>, Digest> known;  // two ranks often lend both ways
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
  Loans loans;
  for (const auto& part : layout.borrowed)
    loans.borrowed.push_back({part.rank, digest(part.segments)});
  for (const auto& part : layout.lent) loans.lent.push_back({part.rank, digest(part.segments)});
  return loans;
}

}  // namespace

StagingPlan StagingPlan::compile(const Value& state, const StagingPlan* previous,
                                 PlanOptions options) {
  if (options.block_bytes < 4096 || !std::has_single_bit(options.block_bytes)) {
    throw InvalidArgument("block_bytes = " + std::to_string(options.block_bytes) +
                          ": must be a power of two from 4096");
  }
  for (const auto* list : {&options.borrowed, &options.lent}) {
    for (const auto& part : *list) {
      if (part.rank >= 0) continue;
      throw InvalidArgument("storages borrowed from or lent to rank " + std::to_string(part.rank) +
                            ": ranks count from 0");
    }
  }
  if (options.max_header_bytes > kMaxHeaderBytes) {
    throw InvalidArgument("max_header_bytes = " + std::to_string(options.max_header_bytes) +
                          ": no more than " + std::to_string(kMaxHeaderBytes) + " are read back");
  }
  auto flat = detail::flatten(state);
  detail::require_devices(flat);
  auto impl = std::make_shared<Impl>();
  const detail::LayoutOptions how{options.block_bytes, options.own_pages_from, options.borrowed,
                                  options.lent, options.max_header_bytes};
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

bool StagingPlan::matches(const Value& state) const { return take(state).has_value(); }

std::optional<StagingSource> StagingPlan::capture(const Value& state,
                                                  std::span<const TrainerStream> streams) const {
  auto source = take(state);
  if (source) source->ready = detail::record_ready(source->storages, streams);
  return source;
}

// What there is now, without a moment.
std::optional<StagingSource> StagingPlan::take(const Value& state) const {
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

BlockDigests StagingPlan::block_digests() const {
  return {impl_->layout.block_bytes, impl_->layout.digested_bytes()};
}

void StagingPlan::copy(const StagingSource& source, std::span<std::byte> image, Watermark& progress,
                       const CopyOptions& options) const {
  const auto& layout = impl_->layout;
  check_size(image, layout);
  if (source.storages.size() != layout.segments.size() ||
      source.values.size() != layout.trailer_begin - layout.values_begin) {
    throw_mismatch();
  }
  if (options.digests != nullptr) check_digests(*options.digests, layout);
  if (options.devices != nullptr) {
    detail::copy_image(layout, source, image, progress, options);
    return;
  }
  detail::DeviceStreams streams;
  const auto issued = issue(source, image, streams, nullptr, options.digests != nullptr);
  auto how = options;
  how.devices = issued.get();
  try {
    detail::copy_image(layout, source, image, progress, how);
  } catch (...) {
    // The caller has the memory back then.
    while (issued && !issued->done()) std::this_thread::yield();
    throw;
  }
}

std::unique_ptr<const detail::DeviceCopies> StagingPlan::issue(const StagingSource& source,
                                                               std::span<std::byte> image,
                                                               detail::DeviceStreams& streams,
                                                               std::shared_ptr<const void> keep,
                                                               bool digest) const {
  check_size(image, impl_->layout);
  if (source.storages.size() != impl_->layout.segments.size()) throw_mismatch();
  const auto places = detail::device_places(impl_->layout, source.storages, image);
  if (places.empty()) return nullptr;
  auto blocks = digest ? impl_->digested.of(impl_->layout, source.storages) : nullptr;
  return std::make_unique<const detail::DeviceCopies>(
      places, source.ready, streams, std::move(keep), CopyDirection::kToHost, std::move(blocks));
}

void StagingPlan::copy(const Value& state, std::span<std::byte> image, Watermark& progress) const {
  const auto source = capture(state);
  if (!source) throw_mismatch();
  copy(*source, image, progress, CopyOptions());
}

void StagingPlan::check_identity(const ImageIdentity& identity) const {
  const auto& layout = impl_->layout;
  for (const auto* list : {&layout.borrowed, &layout.lent}) {
    for (const auto& part : *list) {
      if (part.rank != identity.rank && part.rank < identity.world_size) continue;
      throw InvalidArgument(
          "rank " + std::to_string(identity.rank) + " of " + std::to_string(identity.world_size) +
          " borrows storages from or lends them to rank " + std::to_string(part.rank));
    }
  }
}

ImageInfo StagingPlan::write_trailer(const ImageIdentity& identity, std::span<std::byte> image,
                                     Watermark& progress, const BlockDigests& digests) const {
  const auto& layout = impl_->layout;
  ImageInfo info;
  info.identity = identity;
  info.image_bytes = layout.image_bytes;
  info.manifest_bytes = layout.data_begin;
  info.block_bytes = layout.block_bytes;
  info.manifest_digest = layout.manifest_digest;
  info.borrowed_bytes = layout.borrowed_bytes;
  detail::write_trailer(image.first(layout.image_bytes), digests.digests(), loans_of(layout, image),
                        info);
  progress.advance(layout.image_bytes);
  return info;
}

ImageInfo StagingPlan::seal(const ImageIdentity& identity, std::span<std::byte> image,
                            Watermark& progress, Deadline deadline) const {
  const auto& layout = impl_->layout;
  check_size(image, layout);
  check_identity(identity);
  auto digests = block_digests();
  for (std::size_t i = 0; i < digests.block_count(); ++i) {
    const auto begin = layout.data_begin + i * layout.block_bytes;
    const auto bytes = digests.block_size(i);
    progress.wait(begin + bytes, deadline);
    digests.add(i, image.subspan(begin, bytes));
  }
  return write_trailer(identity, image, progress, digests);
}

ImageInfo StagingPlan::seal(const ImageIdentity& identity, std::span<std::byte> image,
                            Watermark& progress, const BlockDigests& digests) const {
  check_size(image, impl_->layout);
  check_identity(identity);
  check_digests(digests, impl_->layout);
  if (!digests.complete()) throw InvalidArgument("seal(): not every block was copied");
  return write_trailer(identity, image, progress, digests);
}

Value StagingPlan::rebuild(const Value& state, std::span<std::byte> image,
                           std::shared_ptr<const void> owner, StorageTraits traits) const {
  check_size(image, impl_->layout);
  if (!matches(state)) throw_mismatch();
  std::vector<Storage> storages;
  for (const auto* segment : impl_->segments) {
    storages.push_back(
        Storage::wrap(image.data() + segment->offset, segment->bytes, owner, traits));
  }
  return detail::replace_tensors(impl_->state, state, place_tensors(storages));
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
