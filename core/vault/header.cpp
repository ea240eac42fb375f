#include <meshstage/core/vault/header_impl.hpp>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstring>
#include <limits>

// XXH3 is a stable format: the digest may be stored.
#include <xxhash.h>

#include <meshstage/core/error/little_endian.hpp>

namespace meshstage::detail {

namespace {

constexpr std::array<char, 8> kMagic{'M', 'S', 'S', 'L', 'O', 'T', '\r', '\n'};
constexpr std::size_t kDigestAt = kHeaderBytes - 16;

// Where the fields lie.
constexpr std::size_t kMagicAt = 0;
constexpr std::size_t kVersionAt = 8;
constexpr std::size_t kStateAt = 12;
constexpr std::size_t kGenerationAt = 16;
constexpr std::size_t kStepAt = 24;
constexpr std::size_t kBaseGenerationAt = 32;
constexpr std::size_t kBaseStepAt = 40;
constexpr std::size_t kRankAt = 48;
constexpr std::size_t kWorldSizeAt = 52;
constexpr std::size_t kImageBytesAt = 56;
constexpr std::size_t kManifestBytesAt = 64;
constexpr std::size_t kBlockBytesAt = 72;
constexpr std::size_t kManifestDigestAt = 80;  // low, high
constexpr std::size_t kImageDigestAt = 96;     // low, high
constexpr std::size_t kWriterPidAt = 112;
constexpr std::size_t kWriterStartTimeAt = 120;
constexpr std::size_t kJobLengthAt = 128;
constexpr std::size_t kJobAt = 132;
constexpr std::size_t kBorrowedBytesAt = 200;
constexpr std::size_t kLoansAt = 208;

template <class T>
void put(HeaderPage& page, std::size_t at, const T& value) {
  little_endian::store(page.data() + at, value);
}

template <class T>
T get(std::span<const std::byte, kHeaderBytes> page, std::size_t at) {
  return little_endian::load<T>(page.data() + at);
}

Digest get_digest(std::span<const std::byte, kHeaderBytes> page, std::size_t at) {
  return {get<std::uint64_t>(page, at + 8), get<std::uint64_t>(page, at)};
}

void put_digest(HeaderPage& page, std::size_t at, const Digest& digest) {
  put(page, at, digest.low);
  put(page, at + 8, digest.high);
}

bool loans(const ImageInfo& image) { return image.borrowed_bytes != 0 || image.loans != 0; }

SlotInfo damaged(std::string why) {
  SlotInfo info;
  info.damaged = std::move(why);
  return info;
}

}  // namespace

Digest header_digest(std::span<const std::byte, kHeaderBytes> page) {
  HeaderPage copy;
  std::memcpy(copy.data(), page.data(), copy.size());
  put(copy, kWordAt, std::uint64_t{0});
  const XXH128_hash_t h = XXH3_128bits(copy.data(), kDigestAt);
  return {h.high64, h.low64};
}

SlotWord load_word(std::span<const std::byte> page) noexcept {
  // A load changes nothing, but std::atomic_ref wants an object that could be changed.
  auto* const bits = reinterpret_cast<std::uint64_t*>(
      const_cast<std::byte*>(page.subspan(kWordAt, sizeof(std::uint64_t)).data()));
  return unpack(std::atomic_ref(*bits).load());
}

bool swap_word(std::span<std::byte> page, SlotWord& expected, SlotWord wanted) noexcept {
  auto* const bits =
      reinterpret_cast<std::uint64_t*>(page.subspan(kWordAt, sizeof(std::uint64_t)).data());
  std::uint64_t there = pack(expected);
  const bool swapped = std::atomic_ref(*bits).compare_exchange_strong(there, pack(wanted));
  expected = unpack(there);
  return swapped;
}

bool has_sound_sizes(const ImageInfo& image) noexcept {
  if (image.manifest_bytes > image.image_bytes) return false;
  if (image.borrowed_bytes == 0) return true;
  return image.block_bytes != 0 && image.borrowed_bytes % image.block_bytes == 0 &&
         image.borrowed_bytes <= image.image_bytes - image.manifest_bytes;
}

HeaderPage encode_header(const SlotHeader& header) {
  const ImageInfo& image = header.image;
  const std::string& job = image.identity.job;
  assert(job.size() <= kMaxJobBytes);
  HeaderPage page{};
  put(page, kMagicAt, kMagic);
  put(page, kVersionAt, kHeaderVersion);
  put(page, kStateAt, static_cast<std::uint32_t>(header.state));
  put(page, kGenerationAt, image.identity.id.generation);
  put(page, kStepAt, image.identity.id.step);
  put(page, kBaseGenerationAt, image.identity.base.generation);
  put(page, kBaseStepAt, image.identity.base.step);
  put(page, kRankAt, static_cast<std::int32_t>(image.identity.rank));
  put(page, kWorldSizeAt, static_cast<std::int32_t>(image.identity.world_size));
  put(page, kImageBytesAt, image.image_bytes);
  put(page, kManifestBytesAt, image.manifest_bytes);
  put(page, kBlockBytesAt, image.block_bytes);
  put_digest(page, kManifestDigestAt, image.manifest_digest);
  put_digest(page, kImageDigestAt, image.image_digest);
  put(page, kWriterPidAt, header.writer_pid);
  put(page, kWriterStartTimeAt, header.writer_start_time);
  put(page, kBorrowedBytesAt, image.borrowed_bytes);
  put(page, kLoansAt, image.loans);
  put(page, kJobLengthAt, static_cast<std::uint32_t>(job.size()));
  if (!job.empty()) std::memcpy(page.data() + kJobAt, job.data(), job.size());
  put(page, kWordAt, pack({header.state, header.epoch}));
  put_digest(page, kDigestAt, header_digest(page));
  return page;
}

namespace {

bool all_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

/// What the page alone says.
SlotInfo decode_page(std::span<const std::byte, kHeaderBytes> page, SlotWord word) {
  if (all_zero(page.first(kWordAt)) && all_zero(page.subspan(kDigestAt))) {
    if (word.state == SlotState::kSealed) return damaged("it is sealed and has no header");
    return {};
  }
  if (get<std::array<char, 8>>(page, kMagicAt) != kMagic)
    return damaged("the header's magic is wrong");
  if (get_digest(page, kDigestAt) != header_digest(page))
    return damaged("the header does not match its digest");
  const auto version = get<std::uint32_t>(page, kVersionAt);
  if (version < kOldestHeaderVersion || version > kHeaderVersion) {
    return damaged("the header has format version " + std::to_string(version) +
                   ", this program reads " + std::to_string(kOldestHeaderVersion) + " to " +
                   std::to_string(kHeaderVersion));
  }
  const auto state = get<std::uint32_t>(page, kStateAt);
  if (state > static_cast<std::uint32_t>(SlotState::kSealed))
    return damaged("the header's state is unknown");
  // What was written before there were words says it alone, until somebody begins the slot.
  const bool by_word = version == kHeaderVersion || word.state != SlotState::kEmpty;
  if (by_word && static_cast<std::uint32_t>(word.state) != state &&
      word.state != SlotState::kWriting) {
    return damaged("the slot's word does not fit its header");
  }
  const auto job_length = get<std::uint32_t>(page, kJobLengthAt);
  if (job_length > kMaxJobBytes) return damaged("the header's job name is too long");

  SlotInfo info;
  info.state = static_cast<SlotState>(state);
  info.image.identity.job.assign(reinterpret_cast<const char*>(page.data()) + kJobAt, job_length);
  info.image.identity.id = {get<std::uint64_t>(page, kGenerationAt),
                            get<std::uint64_t>(page, kStepAt)};
  info.image.identity.base = {get<std::uint64_t>(page, kBaseGenerationAt),
                              get<std::uint64_t>(page, kBaseStepAt)};
  info.image.identity.rank = get<std::int32_t>(page, kRankAt);
  info.image.identity.world_size = get<std::int32_t>(page, kWorldSizeAt);
  info.image.image_bytes = get<std::uint64_t>(page, kImageBytesAt);
  info.image.manifest_bytes = get<std::uint64_t>(page, kManifestBytesAt);
  info.image.block_bytes = get<std::uint64_t>(page, kBlockBytesAt);
  info.image.manifest_digest = get_digest(page, kManifestDigestAt);
  info.image.image_digest = get_digest(page, kImageDigestAt);
  info.image.borrowed_bytes = get<std::uint64_t>(page, kBorrowedBytesAt);
  info.image.loans = get<std::uint32_t>(page, kLoansAt);
  info.writer_pid = get<std::int64_t>(page, kWriterPidAt);
  const bool may_borrow = version >= kBorrowingHeaderVersion;
  const bool must_borrow = version == kBorrowingHeaderVersion;
  if ((loans(info.image) ? !may_borrow : must_borrow) ||
      (info.image.borrowed_bytes != 0 && !has_sound_sizes(info.image))) {
    return damaged("the header's " + std::to_string(info.image.borrowed_bytes) +
                   " borrowed bytes do not fit its version or its image");
  }
  return info;
}

}  // namespace

SlotInfo decode_header(std::span<const std::byte, kHeaderBytes> page) {
  const SlotWord word = unpack(get<std::uint64_t>(page, kWordAt));
  if (word.state > SlotState::kSealed) return damaged("the slot's word is unknown");
  SlotInfo info = decode_page(page, word);
  if (word.state != SlotState::kWriting || info.state == SlotState::kWriting) return info;
  // The page is written behind the word: this one is of what was there before, or torn, or tells
  // of an image that nobody will seal.
  info = {};
  info.state = SlotState::kWriting;
  return info;
}

SlotInfo read_header(File& file) {
  SlotInfo info;
  for (int attempt = 0; attempt < 3; ++attempt) {
    HeaderPage page{};
    (void)file.read_at(page, 0);
    info = decode_header(page);
    if (info.damaged.empty()) break;
  }
  const std::uint64_t size = file.stat().size;
  info.capacity = size - std::min<std::uint64_t>(size, kHeaderBytes);
  return info;
}

}  // namespace meshstage::detail

namespace meshstage {

std::string_view to_string(SlotState state) noexcept {
  switch (state) {
    case SlotState::kEmpty:
      return "empty";
    case SlotState::kWriting:
      return "writing";
    case SlotState::kSealed:
      return "sealed";
  }
  return "unknown";
}

}  // namespace meshstage
