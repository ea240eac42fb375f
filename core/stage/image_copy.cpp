// An image is cut into parts of about the same bytes, wherever its storages begin and end, so that
// ten thousand small tensors and one huge one take as long on as many threads. A part is digest
// blocks where digests are wanted, else whole huge pages of memory. The watermark follows the first
// part that is not done yet. What devices copy is waited for where it is next, and digested there
// unless the device itself has done it.
#include <meshstage/core/stage/image_copy_impl.hpp>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/image/copy.hpp>
#include <meshstage/core/image/digesting_copy.hpp>
#include <meshstage/core/memory/resource.hpp>

namespace meshstage::detail {
namespace {

// A smaller image stays in the cache: one thread is as fast, and its stores do not bypass it.
constexpr std::uint64_t kLarge = std::uint64_t{8} << 20U;
// Below this a storage of a large image is not worth a fence.
constexpr std::uint64_t kStreamed = 2048;
// A part is no smaller: what a thread does must outweigh taking it.
constexpr std::uint64_t kLeastPart = std::uint64_t{1} << 20U;

// Writes [at, ..) of an image, without digests.
class PlainTarget {
 public:
  PlainTarget(std::span<std::byte> image, std::uint64_t at, bool streaming)
      : image_(image), at_(at), streaming_(streaming) {}
  void write(std::span<const std::byte> bytes) {
    copy_bytes(image_.subspan(at_), bytes, streaming_ && bytes.size() >= kStreamed);
    at_ += bytes.size();
  }
  void write_zeros(std::uint64_t bytes) {
    std::memset(image_.data() + at_, 0, bytes);
    at_ += bytes;
  }
  void take(std::uint64_t bytes) { at_ += bytes; }

 private:
  std::span<std::byte> image_;
  std::uint64_t at_;
  bool streaming_;
};

bool is_on_device(const ImageSegment& segment, std::span<const Storage> storages) {
  return segment.bytes > 0 && !storages[segment.storage].device().is_cpu();
}

class ImageCopy {
 public:
  ImageCopy(const ImageLayout& layout, const StagingSource& source, std::span<std::byte> image,
            Watermark& progress, const CopyOptions& options)
      : layout_(layout),
        source_(source),
        image_(image),
        progress_(progress),
        options_(options),
        large_(layout.digested_bytes() >= kLarge) {
    if (options.digests != nullptr) {
      unit_ = std::max(layout.block_bytes, kLeastPart);  // both are powers of two
      origin_ = layout.data_begin;
    } else {
      unit_ = kHugePageBytes;
    }
    const auto first = (layout.data_begin - origin_) / unit_;
    first_end_ = origin_ + (first + 1) * unit_;
    const auto rest = layout.trailer_begin - std::min(layout.trailer_begin, first_end_);
    done_.resize(1 + (rest + unit_ - 1) / unit_);
    places_.resize(layout.segments.size());
    std::size_t place = 0;
    for (std::size_t i = 0; i < places_.size(); ++i) {
      if (is_on_device(layout.segments[i], source.storages)) {
        places_[i] = place++;
      } else {
        unread_ += layout.segments[i].bytes;
      }
    }
  }

  void run() {
    progress_.advance(layout_.data_begin);
    progress_.throw_if_failed();
    if (unread_ == 0) tell_cpu_read();
    const auto part = [this](std::size_t i) {
      copy_part(i);
      finished(i);
    };
    std::size_t parts = 0;
    {
      const MutexLock lock(mutex_);
      parts = done_.size();
    }
    if (options_.crew != nullptr && large_) {
      options_.crew->run(parts, part, options_.hands);
    } else {
      for (std::size_t i = 0; i < parts; ++i) part(i);
    }
    progress_.throw_if_failed();
  }

 private:
  [[nodiscard]] std::uint64_t begin_of(std::size_t part) const {
    return part == 0 ? layout_.data_begin : first_end_ + (part - 1) * unit_;
  }
  [[nodiscard]] std::uint64_t end_of(std::size_t part) const {
    return std::min(layout_.trailer_begin, first_end_ + part * unit_);
  }

  void copy_part(std::size_t part) {
    const auto begin = begin_of(part), end = end_of(part);
    if (options_.digests == nullptr) {
      PlainTarget target(image_, begin, large_);
      copy_range(begin, end, target);
      return;
    }
    auto& digests = *options_.digests;
    for (auto at = begin; at < end; at += layout_.block_bytes) {
      const auto index = (at - layout_.data_begin) / layout_.block_bytes;
      const auto bytes = digests.block_size(index);
      if (options_.devices != nullptr && options_.devices->digests(index)) {
        PlainTarget target(image_, at, large_);
        copy_range(at, at + bytes, target);
        const auto [low, high] = options_.devices->digest(index, progress_);
        digests.put(index, {.high = high, .low = low});
        continue;
      }
      DigestingCopy target(image_.subspan(at, bytes), large_);
      copy_range(at, at + bytes, target);
      digests.put(index, target.finish());
    }
  }

  // Storages and values with the padding between them, as far as they lie in [at, end).
  template <class Target>
  void copy_range(std::uint64_t at, std::uint64_t end, Target& target) {
    // Calls f with the part of [offset, offset + bytes) that is next.
    const auto place = [&](std::uint64_t offset, std::uint64_t bytes, const auto& f) {
      if (const auto gap = std::min(end, std::max(at, offset)) - at; gap > 0) {
        target.write_zeros(gap);
        at += gap;
      }
      if (at == end) return;
      const auto from = at - offset;
      const auto n = std::min(bytes - from, end - at);
      f(from, n);
      at += n;
    };
    const auto from_host = [&](std::span<const std::byte> bytes) {
      return [&, bytes](std::uint64_t from, std::uint64_t n) {
        write(bytes.subspan(from, n), target);
      };
    };
    auto segment =
        std::partition_point(layout_.segments.begin(), layout_.segments.end(),
                             [&](const ImageSegment& s) { return s.offset + s.bytes <= at; });
    for (; segment != layout_.segments.end() && segment->offset < end; ++segment) {
      if (segment->bytes == 0) continue;
      const auto index = static_cast<std::size_t>(segment - layout_.segments.begin());
      if (const auto on_device = places_[index]) {
        place(segment->offset, segment->bytes, [&](std::uint64_t from, std::uint64_t n) {
          options_.devices->wait(*on_device, from + n, progress_);
          target.take(n);
        });
      } else {
        place(segment->offset, segment->bytes, [&](std::uint64_t from, std::uint64_t n) {
          from_host(source_.storages[segment->storage].bytes())(from, n);
          if (unread_.fetch_sub(n) == n) tell_cpu_read();
        });
      }
    }
    if (at < end) place(layout_.values_begin, source_.values.size(), from_host(source_.values));
  }

  void tell_cpu_read() const {
    if (options_.cpu_read) options_.cpu_read();
  }

  template <class Target>
  void write(std::span<const std::byte> bytes, Target& target) {
    while (!bytes.empty()) {
      const auto n = std::min<std::uint64_t>(bytes.size(), kPaceBytes);
      if (options_.pace != nullptr) options_.pace->before(n, progress_);
      progress_.throw_if_failed();
      target.write(bytes.first(n));
      bytes = bytes.subspan(n);
    }
  }

  void finished(std::size_t part) {
    std::uint64_t final = 0;
    {
      const MutexLock lock(mutex_);
      done_[part] = true;
      if (part != front_) return;
      while (front_ < done_.size() && done_[front_]) ++front_;
      final = end_of(front_ - 1);
    }
    progress_.throw_if_failed();
    progress_.advance(final);
  }

  const ImageLayout& layout_;
  const StagingSource& source_;
  const std::span<std::byte> image_;
  Watermark& progress_;
  const CopyOptions& options_;
  const bool large_;
  std::uint64_t unit_ = 0, origin_ = 0, first_end_ = 0;
  std::atomic<std::uint64_t> unread_{0};            // bytes of the CPU's tensors
  std::vector<std::optional<std::size_t>> places_;  // by segment; nothing: copied here
  Mutex mutex_;
  std::vector<bool> done_ MESHSTAGE_GUARDED_BY(mutex_);
  std::size_t front_ MESHSTAGE_GUARDED_BY(mutex_) = 0;
};

}  // namespace

std::vector<DevicePlace> device_places(const ImageLayout& layout, std::span<const Storage> storages,
                                       std::span<std::byte> image) {
  std::vector<DevicePlace> places;
  for (const auto& segment : layout.segments) {
    if (!is_on_device(segment, storages)) continue;
    places.push_back({&storages[segment.storage], image.subspan(segment.offset, segment.bytes)});
  }
  return places;
}

void copy_image(const ImageLayout& layout, const StagingSource& source, std::span<std::byte> image,
                Watermark& progress, const CopyOptions& options) {
  ImageCopy(layout, source, image, progress, options).run();
}

}  // namespace meshstage::detail
