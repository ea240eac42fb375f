#include <algorithm>
#include <atomic>
#include <numeric>
#include <vector>

#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/bytes.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/image/manifest_impl.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/image/trailer.hpp>

namespace meshstage {

BlockDigests::BlockDigests(std::uint64_t block_bytes, std::uint64_t digested_bytes,
                           std::size_t first_block)
    : block_bytes_(block_bytes), digested_bytes_(digested_bytes), first_block_(first_block) {
  if (block_bytes == 0) throw InvalidArgument("blocks of 0 bytes");
  const auto count = digested_bytes / block_bytes + (digested_bytes % block_bytes != 0 ? 1 : 0);
  if (first_block > count) {
    throw InvalidArgument("blocks from " + std::to_string(first_block) + " on, of " +
                          std::to_string(count));
  }
  digests_.resize(count);
  upper_halves_.resize(count);
  added_.resize(count);
}

std::uint64_t BlockDigests::block_size(std::size_t index) const {
  if (index >= block_count()) {
    throw InvalidArgument("block " + std::to_string(index) + " of " +
                          std::to_string(block_count()));
  }
  return std::min(block_bytes_, digested_bytes_ - index * block_bytes_);
}

void BlockDigests::add(std::size_t index, std::span<const std::byte> bytes) {
  if (bytes.size() != block_size(index)) {
    throw InvalidArgument("block " + std::to_string(index) + " has " +
                          std::to_string(block_size(index)) + " bytes, not " +
                          std::to_string(bytes.size()));
  }
  put(index, digest_block(bytes));
}

void BlockDigests::put(std::size_t index, const Digest& digest) {
  if (index < first_block_ || index >= block_count()) {
    throw InvalidArgument("block " + std::to_string(index) + ", where those from " +
                          std::to_string(first_block_) + " to " + std::to_string(block_count()) +
                          " were to come");
  }
  digests_[index] = digest.low;
  upper_halves_[index] = digest.high;
  added_[index] = 1;
}

Digest BlockDigests::digest(std::size_t index) const {
  static_cast<void>(block_size(index));  // throws
  return {upper_halves_[index], digests_[index]};
}

bool BlockDigests::complete() const noexcept {
  return std::all_of(added_.begin() + static_cast<std::ptrdiff_t>(first_block_), added_.end(),
                     [](auto a) { return a != 0; });
}

namespace {

[[noreturn]] void refuse(const detail::Trailer& trailer, const std::string& what,
                         const std::string& path) {
  const auto& identity = trailer.info.identity;
  throw make_error<CorruptData>(
      (trailer.gap == 0 ? "image of " : "replica of ") + to_string(identity) + ": " + what,
      identity.rank, identity.id.step, path);
}

// Reads the trailer and checks the manifest that it names. `bytes`: of an image or its replica.
detail::Trailer read_ends(std::span<const std::byte> bytes, detail::Form form) {
  const auto trailer = detail::read_trailer(bytes, form);
  const auto& info = trailer.info;
  if (digest128(bytes.first(info.manifest_bytes)) != info.manifest_digest)
    refuse(trailer, "the manifest does not match its digest", "");
  return trailer;
}

// The first block that is there.
std::size_t first_block(const detail::Trailer& trailer) {
  return trailer.gap / trailer.info.block_bytes;
}

std::uint64_t block_begin(const detail::Trailer& trailer, std::size_t block) {
  return trailer.info.manifest_bytes + block * trailer.info.block_bytes;
}
std::uint64_t block_size(const detail::Trailer& trailer, std::size_t block) {
  return std::min(trailer.info.block_bytes, trailer.begin - block_begin(trailer, block));
}

bool is_in_table(const detail::Trailer& trailer, std::size_t block, std::uint64_t digest) {
  return detail::load<std::uint64_t>(trailer.digests, 8 * block) == digest;
}

// `bytes`: of the image, for the names of the tensors in the wrong block.
[[noreturn]] void refuse_block(std::span<const std::byte> bytes, const detail::Trailer& trailer,
                               std::size_t block) {
  const auto begin = block_begin(trailer, block);
  const auto end = begin + block_size(trailer, block);
  std::string path;
  const auto what = detail::describe_range(bytes, trailer.info.image_bytes, begin, end, path);
  refuse(trailer,
         "block " + std::to_string(block) + " (bytes " + std::to_string(begin) + " to " +
             std::to_string(end) + ") does not match its digest; it holds " + what,
         path);
}

void check_table(std::span<const std::byte> bytes, const detail::Trailer& trailer,
                 std::size_t block, std::uint64_t digest) {
  if (!is_in_table(trailer, block, digest)) refuse_block(bytes, trailer, block);
}

/// Proves the blocks of a list, ascending numbers. Returns how many of them precede the first wrong
/// one.
std::size_t sound_blocks(std::span<const std::byte> bytes, const detail::Trailer& trailer,
                         std::span<const std::size_t> blocks, const BytesRead& read, Crew* crew) {
  // Tasks begin in ascending order, so every block before a wrong one is proven, too: the first
  // wrong one is the same for any number of threads.
  std::atomic<std::size_t> first_wrong{blocks.size()};
  const auto prove = [&](std::size_t n) {
    if (n > first_wrong) return;
    const auto i = blocks[n];
    const auto size = block_size(trailer, i);
    const auto digest = digest64(bytes.subspan(block_begin(trailer, i) - trailer.gap, size));
    if (is_in_table(trailer, i, digest)) {
      if (read) read(size);
      return;
    }
    for (auto seen = first_wrong.load(); n < seen && !first_wrong.compare_exchange_weak(seen, n);) {
    }
  };
  if (crew != nullptr) {
    crew->run(blocks.size(), prove);
  } else {
    for (std::size_t n = 0; n < blocks.size(); ++n) prove(n);
  }
  return first_wrong;
}

ImageInfo verify(std::span<const std::byte> bytes, detail::Form form, const BytesRead& read,
                 Crew* crew) {
  const auto trailer = read_ends(bytes, form);
  if (read) read(trailer.info.manifest_bytes);
  const auto first = first_block(trailer);
  std::vector<std::size_t> blocks(std::max<std::size_t>(first, trailer.digests.size() / 8) - first);
  std::iota(blocks.begin(), blocks.end(), first);
  const auto sound = sound_blocks(bytes, trailer, blocks, read, crew);
  if (sound < blocks.size()) refuse_block(bytes, trailer, blocks[sound]);
  return trailer.info;
}

ImageInfo check(std::span<const std::byte> bytes, const BlockDigests& digests, detail::Form form) {
  if (!digests.complete())
    throw InvalidArgument("not every block has arrived that is to be checked");
  const auto trailer = read_ends(bytes, form);
  const auto& info = trailer.info;
  if (digests.block_bytes() != info.block_bytes ||
      digests.block_count() * 8 != trailer.digests.size()) {
    refuse(trailer,
           "it has " + std::to_string(trailer.digests.size() / 8) + " blocks of " +
               std::to_string(info.block_bytes) + " bytes, but digests were made of " +
               std::to_string(digests.block_count()) + " of " +
               std::to_string(digests.block_bytes()) + " bytes",
           "");
  }
  if (digests.first_block() != first_block(trailer)) {
    refuse(trailer,
           "it begins with block " + std::to_string(first_block(trailer)) +
               ", but digests were made from block " + std::to_string(digests.first_block()) +
               " on",
           "");
  }
  for (auto i = digests.first_block(); i < digests.block_count(); ++i)
    check_table(bytes, trailer, i, digests.digests()[i]);
  return info;
}

}  // namespace

ImageInfo read_info(std::span<const std::byte> image) { return detail::read_trailer(image).info; }
ImageInfo read_replica_info(std::span<const std::byte> replica) {
  return detail::read_trailer(replica, detail::Form::kReplica).info;
}

Loans read_loans(std::span<const std::byte> image) {
  return detail::decode_loans(detail::read_trailer(image));
}
Loans read_replica_loans(std::span<const std::byte> replica) {
  return detail::decode_loans(detail::read_trailer(replica, detail::Form::kReplica));
}

ImageInfo verify_image(std::span<const std::byte> image) { return verify_image(image, {}); }
ImageInfo verify_image(std::span<const std::byte> image, const BytesRead& read, Crew* crew) {
  return verify(image, detail::Form::kImage, read, crew);
}
ImageInfo verify_replica(std::span<const std::byte> replica) { return verify_replica(replica, {}); }
ImageInfo verify_replica(std::span<const std::byte> replica, const BytesRead& read, Crew* crew) {
  return verify(replica, detail::Form::kReplica, read, crew);
}

struct ImageProof::State {
  std::span<const std::byte> image;
  detail::Trailer trailer;
  std::vector<bool> proven;
};

ImageProof::ImageProof(std::span<const std::byte> image, const BytesRead& read)
    : state_(std::make_unique<State>()) {
  state_->image = image;
  state_->trailer = read_ends(image, detail::Form::kImage);
  state_->proven.resize(state_->trailer.digests.size() / 8);
  if (read) read(state_->trailer.info.manifest_bytes);
}
ImageProof::ImageProof(ImageProof&&) noexcept = default;
ImageProof& ImageProof::operator=(ImageProof&&) noexcept = default;
ImageProof::~ImageProof() = default;

std::span<const std::byte> ImageProof::image() const noexcept { return state_->image; }
const ImageInfo& ImageProof::info() const noexcept { return state_->trailer.info; }

void ImageProof::set_proven() noexcept {
  std::fill(state_->proven.begin(), state_->proven.end(), true);
}

void ImageProof::prove(std::uint64_t begin, std::uint64_t end, const BytesRead& read, Crew* crew) {
  const auto& trailer = state_->trailer;
  if (begin > end || end > trailer.info.image_bytes) {
    throw InvalidArgument("bytes " + std::to_string(begin) + " to " + std::to_string(end) +
                          " do not lie in an image of " + std::to_string(trailer.info.image_bytes));
  }
  const std::uint64_t data = trailer.info.manifest_bytes;
  begin = std::max(begin, data);
  end = std::min(end, trailer.begin);
  if (begin >= end) return;
  const auto last = (end - 1 - data) / trailer.info.block_bytes;
  std::vector<std::size_t> blocks;
  for (auto i = (begin - data) / trailer.info.block_bytes; i <= last; ++i) {
    if (!state_->proven[i]) blocks.push_back(i);
  }
  const auto sound = sound_blocks(state_->image, trailer, blocks, read, crew);
  for (const auto i : std::span(blocks).first(sound)) state_->proven[i] = true;
  if (sound < blocks.size()) refuse_block(state_->image, trailer, blocks[sound]);
}

ImageInfo read_proven(
    std::span<const std::byte> image,
    const std::function<void(std::span<const std::byte> piece, std::uint64_t offset)>& take) {
  auto trailer = detail::read_trailer(image);
  const auto& info = trailer.info;
  // The trailer is read again, into memory that nobody else has. Every other piece is compared with
  // this copy, so what changed since read_trailer() looked makes one of the digests wrong.
  const auto tail = image.subspan(trailer.begin);
  const std::vector<std::byte> end(tail.begin(), tail.end());
  const std::size_t digested = end.size() - 16;
  const Digest stored{.high = detail::load<std::uint64_t>(end, digested + 8),
                      .low = detail::load<std::uint64_t>(end, digested)};
  if (stored != info.image_digest || digest128(std::span(end).first(digested)) != stored)
    refuse(trailer, "its trailer changed while it was read", "");
  const auto table = static_cast<std::size_t>(trailer.digests.data() - tail.data());
  trailer.digests = std::span(end).subspan(table, trailer.digests.size());

  std::vector<std::byte> copy;
  const auto copy_of = [&](std::uint64_t begin, std::uint64_t bytes) {
    const auto from = image.subspan(begin, bytes);
    copy.assign(from.begin(), from.end());
    return std::span<const std::byte>(copy);
  };
  const auto manifest = copy_of(0, info.manifest_bytes);
  if (digest128(manifest) != info.manifest_digest)
    refuse(trailer, "the manifest does not match its digest", "");
  take(manifest, 0);
  for (std::size_t i = 0; i < trailer.digests.size() / 8; ++i) {
    const auto begin = block_begin(trailer, i);
    const auto block = copy_of(begin, block_size(trailer, i));
    check_table(image, trailer, i, digest64(block));
    take(block, begin);
  }
  take(end, trailer.begin);
  return info;
}

ImageInfo check_blocks(std::span<const std::byte> image, const BlockDigests& digests) {
  if (digests.first_block() != 0) {
    throw InvalidArgument("check_blocks(): the first " + std::to_string(digests.first_block()) +
                          " blocks were not digested; check_replica_blocks() needs none");
  }
  return check(image, digests, detail::Form::kImage);
}
ImageInfo check_replica_blocks(std::span<const std::byte> replica, const BlockDigests& digests) {
  return check(replica, digests, detail::Form::kReplica);
}

}  // namespace meshstage
