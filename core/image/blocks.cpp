#include <algorithm>

#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/bytes_impl.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/image/manifest_impl.hpp>
#include <meshstage/core/image/trailer_impl.hpp>

namespace meshstage {

BlockDigests::BlockDigests(std::uint64_t block_bytes, std::uint64_t digested_bytes)
    : block_bytes_(block_bytes), digested_bytes_(digested_bytes) {
  if (block_bytes == 0) throw InvalidArgument("blocks of 0 bytes");
  const auto count = digested_bytes / block_bytes + (digested_bytes % block_bytes != 0 ? 1 : 0);
  digests_.resize(count);
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
  digests_[index] = digest64(bytes);
  added_[index] = 1;
}

bool BlockDigests::complete() const noexcept {
  return std::all_of(added_.begin(), added_.end(), [](auto a) { return a != 0; });
}

namespace {

[[noreturn]] void refuse(const ImageInfo& info, const std::string& what, const std::string& path) {
  throw make_error<CorruptData>("image of " + to_string(info.identity) + ": " + what,
                                info.identity.rank, info.identity.id.step, path);
}

void check_manifest(std::span<const std::byte> image, const ImageInfo& info) {
  if (digest128(image.first(info.manifest_bytes)) != info.manifest_digest) {
    refuse(info, "the manifest does not match its digest", "");
  }
}

[[noreturn]] void refuse_block(std::span<const std::byte> image, const ImageInfo& info,
                               std::uint64_t trailer_begin, std::size_t block) {
  const auto begin = info.manifest_bytes + block * info.block_bytes;
  const auto end = std::min(trailer_begin, begin + info.block_bytes);
  std::string path;
  const auto what = detail::describe_range(image, begin, end, path);
  refuse(info,
         "block " + std::to_string(block) + " (bytes " + std::to_string(begin) + " to " +
             std::to_string(end) + ") does not match its digest; it holds " + what,
         path);
}

void check_table(std::span<const std::byte> image, const detail::Trailer& trailer,
                 std::size_t block, std::uint64_t digest) {
  if (detail::load<std::uint64_t>(trailer.digests, 8 * block) != digest) {
    refuse_block(image, trailer.info, trailer.begin, block);
  }
}

}  // namespace

ImageInfo read_info(std::span<const std::byte> image) { return detail::read_trailer(image).info; }

ImageInfo verify_image(std::span<const std::byte> image) {
  const auto trailer = detail::read_trailer(image);
  const auto& info = trailer.info;
  check_manifest(image, info);
  const auto blocks = trailer.digests.size() / 8;
  for (std::size_t i = 0; i < blocks; ++i) {
    const auto begin = info.manifest_bytes + i * info.block_bytes;
    const auto bytes = std::min(info.block_bytes, trailer.begin - begin);
    check_table(image, trailer, i, digest64(image.subspan(begin, bytes)));
  }
  return info;
}

ImageInfo check_blocks(std::span<const std::byte> image, const BlockDigests& digests) {
  if (!digests.complete()) throw InvalidArgument("check_blocks(): not every block has arrived");
  const auto trailer = detail::read_trailer(image);
  const auto& info = trailer.info;
  check_manifest(image, info);
  if (digests.block_bytes() != info.block_bytes ||
      digests.block_count() * 8 != trailer.digests.size()) {
    refuse(info,
           "it has " + std::to_string(trailer.digests.size() / 8) + " blocks of " +
               std::to_string(info.block_bytes) + " bytes, digested were " +
               std::to_string(digests.block_count()) + " of " +
               std::to_string(digests.block_bytes()),
           "");
  }
  for (std::size_t i = 0; i < digests.block_count(); ++i)
    check_table(image, trailer, i, digests.digests()[i]);
  return info;
}

}  // namespace meshstage
