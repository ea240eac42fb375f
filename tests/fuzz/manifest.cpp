// Any bytes as an image: CorruptData, or a state dict that stages to an equal one. The input is the
// header's JSON up to a zero byte, then the data section. It is tried as it stands, and with a
// trailer that fits: then the digests must tell each changed byte.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/image/manifest_impl.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/image/trailer.hpp>
#include <meshstage/core/stage/staging_plan.hpp>
#include <meshstage/core/tree/compare.hpp>

using namespace meshstage;

namespace {

Storage image_of(std::span<const std::byte> input) {
  const auto zero = std::find(input.begin(), input.end(), std::byte{0});
  const auto json = input.first(static_cast<std::size_t>(zero - input.begin()));
  const auto data = zero == input.end() ? input.last(0) : input.subspan(json.size() + 1);
  const std::uint64_t data_begin = (8 + json.size() + 4095) / 4096 * 4096;
  const std::uint64_t header = data_begin - 8;
  auto image = Storage::allocate(data_begin + data.size());
  std::memset(image.data(), ' ', data_begin);
  std::memcpy(image.data(), &header, 8);
  if (!json.empty()) std::memcpy(image.data() + 8, json.data(), json.size());
  if (!data.empty()) std::memcpy(image.data() + data_begin, data.data(), data.size());
  return image;
}

/// Staged again from what was decoded: the same state. What cannot be staged (views that overlap
/// in a way that no image holds) says so.
void check_round_trip(const Value& decoded) {
  Storage again;
  try {
    const auto plan = StagingPlan::compile(decoded, nullptr, {.block_bytes = 4096});
    if (plan.layout().image_bytes > 1U << 24U) return;
    again = Storage::allocate(plan.layout().image_bytes);
    Watermark progress;
    plan.write_manifest(again.bytes());
    plan.copy(decoded, again.bytes(), progress);
    (void)plan.seal({"fuzz", 0, 1, {1, 1}, {}}, again.bytes(), progress);
  } catch (const InvalidArgument&) {
    return;
  }
  (void)verify_image(again.bytes());
  const Value twice = decode_image(again.bytes(), nullptr);
  if (compare(decoded, twice)) std::abort();
  if (compare_structure(again.bytes(), decoded)) std::abort();
  Value target = decoded;
  try {
    restore_into(again.bytes(), target);
  } catch (const InvalidState&) {  // decoded tensors are read-only
  }
}

void check_decoding(const Storage& image) {
  std::optional<Value> decoded;
  try {
    decoded = decode_image(image.bytes(), nullptr);
  } catch (const CorruptData&) {
  }
  const Value state = Dict{{"w", Tensor::arange<float>(6).view({2, 3})}, {"step", 7}};
  try {
    (void)compare_structure(image.bytes(), state);
    if (!decoded) std::abort();
  } catch (const CorruptData&) {
    if (decoded) std::abort();
  }
  if (decoded) check_round_trip(*decoded);
}

constexpr int kRank = 2, kWorld = 4;

/// A trailer that was written, and whether its ranks are such as may lend.
struct Sealed {
  ImageInfo info;
  Loans loans;
  bool sound = true;
};

/// A loan for each rank from which the manifest borrows, and as many more as there is room for;
/// nothing if there is other room than for whole ones.
std::optional<Sealed> loans_in(const Storage& image, const detail::Manifest& manifest,
                               std::uint64_t room) {
  constexpr std::uint64_t kLoanBytes = 24;
  Sealed sealed;
  const std::uint64_t count = room / kLoanBytes;
  if (room % kLoanBytes != 0 || count < manifest.borrowed.size() ||
      count - manifest.borrowed.size() >= static_cast<std::uint64_t>(kWorld)) {
    return std::nullopt;
  }
  for (const auto& part : manifest.borrowed) {
    sealed.loans.borrowed.push_back({part.rank, digest_ranges(image.bytes(), ranges_of(part))});
    sealed.sound = sealed.sound && part.rank != kRank && part.rank < kWorld;
  }
  for (int rank = 0; sealed.loans.lent.size() < count - manifest.borrowed.size(); ++rank) {
    if (rank != kRank) sealed.loans.lent.push_back({rank, {5, 6}});
  }
  return sealed;
}

/// Digests of what is there, where the manifest leaves room for a trailer.
std::optional<Sealed> seal(const Storage& image) {
  detail::Manifest manifest;
  try {
    manifest = detail::decode_manifest(image.bytes(), image.nbytes());
  } catch (const CorruptData&) {
    return std::nullopt;
  }
  const std::uint64_t digested = manifest.trailer.begin - manifest.data_begin;
  const std::uint64_t blocks =
      digested / manifest.block_bytes + (digested % manifest.block_bytes != 0 ? 1 : 0);
  const std::uint64_t room = image.nbytes() - manifest.trailer.begin;
  const std::uint64_t least = trailer_size(digested, manifest.block_bytes);
  if (blocks > 1000 || room < least) return std::nullopt;
  auto sealed = loans_in(image, manifest, room - least);
  if (!sealed) return std::nullopt;
  BlockDigests digests(manifest.block_bytes, digested);
  for (std::size_t i = 0; i < digests.block_count(); ++i) {
    digests.add(i, image.bytes().subspan(manifest.data_begin + i * manifest.block_bytes,
                                         digests.block_size(i)));
  }
  ImageInfo& info = sealed->info;
  info.identity = {"fuzz", kRank, kWorld, {3, 85}, {3, 80}};
  info.image_bytes = image.nbytes();
  info.manifest_bytes = manifest.data_begin;
  info.block_bytes = manifest.block_bytes;
  info.manifest_digest = digest128(image.bytes().first(manifest.data_begin));
  info.borrowed_bytes = manifest.borrowed_bytes;
  detail::write_trailer(image.bytes(), digests.digests(), sealed->loans, info);
  return sealed;
}

using Verify = ImageInfo (*)(std::span<const std::byte>);

void check_noticed(const Storage& image, std::size_t at, Verify verify = verify_image) {
  image.data()[at] ^= std::byte{0x40};
  bool noticed = false;
  try {
    (void)verify(image.bytes());
  } catch (const CorruptData&) {
    noticed = true;
  }
  if (!noticed) std::abort();
  image.data()[at] ^= std::byte{0x40};
}

using ReadLoans = Loans (*)(std::span<const std::byte>);

/// What was written is read, unless it makes no sense.
void check_loans(std::span<const std::byte> bytes, const Sealed& sealed, ReadLoans read) {
  try {
    if (read(bytes) != sealed.loans || !sealed.sound) std::abort();
  } catch (const CorruptData&) {
    if (sealed.sound) std::abort();
  }
}

/// Bytes that nobody sealed, as a replica.
void check_as_replica(std::span<const std::byte> bytes) {
  try {
    (void)read_replica_loans(bytes);
  } catch (const CorruptData&) {
  }
  try {
    const ImageInfo info = verify_replica(bytes);
    for (const auto& part : borrowed_parts(bytes, info)) {
      for (const auto& piece : part.pieces) {
        if (piece.offset < info.manifest_bytes || piece.bytes == 0 ||
            piece.offset + piece.bytes > info.manifest_bytes + info.borrowed_bytes) {
          std::abort();
        }
      }
    }
  } catch (const CorruptData&) {
  }
}

/// The replica of a sound image verifies, tells each changed byte, and makes the image again with
/// what it borrows.
void check_replica(const Storage& image, const Sealed& sealed) {
  const ImageInfo& info = sealed.info;
  const auto replica = Storage::allocate(info.replica_bytes());
  const auto gap_end = info.manifest_bytes + info.borrowed_bytes;
  std::memcpy(replica.data(), image.data(), info.manifest_bytes);
  std::memcpy(replica.data() + info.manifest_bytes, image.data() + gap_end,
              image.nbytes() - gap_end);
  if (verify_replica(replica.bytes()) != info) std::abort();
  check_loans(replica.bytes(), sealed, read_replica_loans);
  for (std::size_t k = 0; k < 4; ++k)
    check_noticed(replica, replica.nbytes() * k / 4, verify_replica);
  std::vector<BorrowedPart> parts;
  try {
    parts = borrowed_parts(replica.bytes(), info);
  } catch (const CorruptData&) {  // ranks that this one cannot borrow from
    return;
  }
  const auto whole = Storage::allocate(image.nbytes());
  place_replica(replica.bytes(), info, whole.bytes());
  std::memcpy(whole.data() + info.manifest_bytes, image.data() + info.manifest_bytes,
              info.borrowed_bytes);
  if (std::memcmp(whole.data(), image.data(), whole.nbytes()) != 0) std::abort();
  clear_borrowed_padding(parts, info, whole.bytes());
  for (const auto& part : parts) {
    for (const auto& piece : part.pieces) {
      if (std::memcmp(whole.data() + piece.offset, image.data() + piece.offset, piece.bytes) != 0) {
        std::abort();
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const Storage image = image_of(std::as_bytes(std::span(data, size)));
  try {
    (void)verify_image(image.bytes());
    (void)read_loans(image.bytes());
  } catch (const CorruptData&) {
  }
  check_as_replica(image.bytes());
  check_decoding(image);
  const auto sealed = seal(image);
  if (!sealed) return 0;
  const ImageInfo& info = sealed->info;
  if (verify_image(image.bytes()) != info || read_info(image.bytes()) != info) std::abort();
  check_loans(image.bytes(), *sealed, read_loans);
  for (std::size_t k = 0; k < 8; ++k) check_noticed(image, image.nbytes() * k / 8);
  check_noticed(image, info.manifest_bytes);
  check_noticed(image, image.nbytes() - 1);
  check_replica(image, *sealed);
  check_decoding(image);
  return 0;
}
