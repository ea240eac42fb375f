// An image without what another rank has too, and how the whole is made of it again.
#include <algorithm>
#include <cstring>

#include <meshstage/core/image/copy.hpp>
#include <meshstage/core/image/manifest_impl.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/image/safetensors.hpp>

namespace meshstage {

std::vector<BorrowedPart> borrowed_parts(std::span<const std::byte> image_or_replica,
                                         const ImageInfo& info) {
  const auto refuse = [&](const std::string& why) {
    throw make_error<CorruptData>("image of " + to_string(info.identity) + ": " + why,
                                  info.identity.rank, info.identity.id.step);
  };
  if (image_or_replica.size() < info.manifest_bytes)
    refuse("ends within its manifest of " + std::to_string(info.manifest_bytes) + " bytes");
  auto manifest =
      detail::decode_manifest(image_or_replica.first(info.manifest_bytes), info.image_bytes);
  if (manifest.data_begin != info.manifest_bytes ||
      manifest.borrowed_bytes != info.borrowed_bytes ||
      (info.borrowed_bytes != 0 && manifest.block_bytes != info.block_bytes)) {
    refuse("its manifest says that " + std::to_string(manifest.borrowed_bytes) +
           " bytes are borrowed, in blocks of " + std::to_string(manifest.block_bytes) +
           ", its trailer " + std::to_string(info.borrowed_bytes) + " in blocks of " +
           std::to_string(info.block_bytes));
  }
  for (const auto& part : manifest.borrowed) {
    if (part.rank == info.identity.rank || part.rank >= info.identity.world_size)
      refuse("it borrows from rank " + std::to_string(part.rank));
  }
  return std::move(manifest.borrowed);
}

Loans checked_loans(std::span<const std::byte> image_or_replica, const ImageInfo& info) {
  const bool whole = image_or_replica.size() == info.image_bytes;
  auto loans = whole ? read_loans(image_or_replica) : read_replica_loans(image_or_replica);
  std::vector<int> said, named;
  for (const auto& loan : loans.borrowed) said.push_back(loan.rank);
  if (info.borrowed_bytes != 0) {
    for (const auto& part : borrowed_parts(image_or_replica, info)) named.push_back(part.rank);
  }
  if (said != named) {
    throw make_error<CorruptData>(
        "image of " + to_string(info.identity) + ": manifest and trailer disagree on its lenders",
        info.identity.rank, info.identity.id.step);
  }
  return loans;
}

std::vector<ImageRange> ranges_of(const BorrowedPart& part) {
  std::vector<ImageRange> ranges;
  for (const auto& piece : part.pieces) ranges.push_back({piece.offset, piece.bytes});
  return ranges;
}

std::vector<std::optional<ImageRange>> find_ranges(std::span<const std::byte> image,
                                                   std::span<const std::string> names) {
  const auto index = SafetensorsIndex::parse(image);
  std::vector<std::optional<ImageRange>> ranges;
  ranges.reserve(names.size());
  for (const auto& name : names) {
    const auto* entry = index.find(name);
    const bool storage = entry != nullptr && name != detail::kValuesName &&
                         name != detail::kTrailerName && !name.starts_with(detail::kPadPrefix);
    ranges.push_back(storage ? std::optional(ImageRange{index.data_begin() + entry->begin,
                                                        entry->end - entry->begin})
                             : std::nullopt);
  }
  return ranges;
}

namespace {

void require_room(const ImageInfo& info, std::span<const std::byte> image) {
  if (image.size() < info.image_bytes || info.manifest_bytes > info.image_bytes ||
      info.borrowed_bytes > info.image_bytes - info.manifest_bytes) {
    throw InvalidArgument("an image of " + std::to_string(info.image_bytes) + " bytes, " +
                          std::to_string(info.borrowed_bytes) + " of them borrowed, does not fit " +
                          std::to_string(image.size()));
  }
}

}  // namespace

void place_replica(std::span<const std::byte> replica, const ImageInfo& info,
                   std::span<std::byte> image) {
  require_room(info, image);
  if (replica.size() != info.replica_bytes()) {
    throw InvalidArgument("a replica of " + std::to_string(replica.size()) + " bytes, not " +
                          std::to_string(info.replica_bytes()));
  }
  detail::copy_bytes(image, replica.first(info.manifest_bytes));
  detail::copy_bytes(image.subspan(info.manifest_bytes + info.borrowed_bytes),
                     replica.subspan(info.manifest_bytes));
}

void clear_borrowed_padding(std::span<const BorrowedPart> parts, const ImageInfo& info,
                            std::span<std::byte> image) {
  require_room(info, image);
  auto at = info.manifest_bytes;
  const auto end = info.manifest_bytes + info.borrowed_bytes;
  const auto zero_to = [&](std::uint64_t offset) {
    std::memset(image.data() + at, 0, offset - at);
  };
  for (const auto& part : parts) {
    for (const auto& piece : part.pieces) {
      if (piece.offset < at || piece.offset > end || piece.bytes > end - piece.offset) {
        throw InvalidArgument("the borrowed storage " + piece.name + " of " +
                              std::to_string(piece.bytes) + " bytes at " +
                              std::to_string(piece.offset) + " does not lie in the gap");
      }
      zero_to(piece.offset);
      at = piece.offset + piece.bytes;
    }
  }
  zero_to(end);
}

Digest digest_ranges(std::span<const std::byte> image, std::span<const ImageRange> ranges) {
  std::vector<std::span<const std::byte>> parts;
  parts.reserve(ranges.size());
  for (const auto& [offset, bytes] : ranges) {
    if (offset > image.size() || bytes > image.size() - offset) {
      throw InvalidArgument(std::to_string(bytes) + " bytes at " + std::to_string(offset) +
                            " do not lie in an image of " + std::to_string(image.size()));
    }
    parts.push_back(image.subspan(offset, bytes));
  }
  return digest128_joined(parts);
}

}  // namespace meshstage
