#include <algorithm>
#include <cstring>

#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/bytes.hpp>
#include <meshstage/core/image/manifest_impl.hpp>
#include <meshstage/core/image/trailer.hpp>

namespace meshstage {
namespace detail {
namespace {

// FORMAT.md, "Trailer".
constexpr std::uint64_t kMagic = 0x314C4941'5254534DU;     // "MSTRAIL1"
constexpr std::uint64_t kEndMagic = 0x31444E45'474D534DU;  // "MSMGEND1"
constexpr std::size_t kVersionAt = 8, kJobBytesAt = 12, kJobAt = 16, kRankAt = 80, kWorldAt = 84,
                      kIdAt = 88, kBaseAt = 104, kImageBytesAt = 120, kDataBeginAt = 128,
                      kBlockBytesAt = 136, kBlockCountAt = 144, kManifestDigestAt = 152,
                      kBorrowedBytesAt = 168, kLoansAt = 176, kTableAt = 192;
// A loan: kind, rank, digest.
constexpr std::size_t kLoanBytes = 24;
constexpr std::uint32_t kBorrowed = 0, kLent = 1;
// From the end: trailer bytes, magic, digest.
constexpr std::size_t kFooterBytes = 32;

void store_digest(std::span<std::byte> bytes, std::size_t at, const Digest& digest) {
  store(bytes, at, digest.low);
  store(bytes, at + 8, digest.high);
}

Digest load_digest(std::span<const std::byte> bytes, std::size_t at) {
  const auto low = load<std::uint64_t>(bytes, at);
  return {load<std::uint64_t>(bytes, at + 8), low};
}

[[noreturn]] void refuse(const std::string& why) { throw CorruptData("image trailer: " + why); }

std::uint32_t trailer_version(const ImageInfo& info) {
  return info.borrowed_bytes == 0 && info.loans == 0 ? kFormatVersion : kBorrowingVersion;
}

std::uint64_t block_count(std::uint64_t digested, std::uint64_t block) {
  return digested / block + (digested % block != 0 ? 1 : 0);
}

ImageIdentity read_identity(std::span<const std::byte> trailer) {
  ImageIdentity identity;
  const auto job_bytes = load<std::uint32_t>(trailer, kJobBytesAt);
  if (job_bytes > kMaxJobBytes) refuse("a job name of " + std::to_string(job_bytes) + " bytes");
  identity.job.assign(reinterpret_cast<const char*>(trailer.data()) + kJobAt, job_bytes);
  identity.rank = load<std::int32_t>(trailer, kRankAt);
  identity.world_size = load<std::int32_t>(trailer, kWorldAt);
  if (identity.rank < 0 || identity.rank >= identity.world_size) {
    refuse("rank " + std::to_string(identity.rank) + " of " + std::to_string(identity.world_size));
  }
  identity.id = {load<std::uint64_t>(trailer, kIdAt), load<std::uint64_t>(trailer, kIdAt + 8)};
  identity.base = {load<std::uint64_t>(trailer, kBaseAt),
                   load<std::uint64_t>(trailer, kBaseAt + 8)};
  return identity;
}

}  // namespace

void write_trailer(std::span<std::byte> image, std::span<const std::uint64_t> block_digests,
                   const Loans& loans, ImageInfo& info) {
  const auto& identity = info.identity;
  if (identity.job.size() > kMaxJobBytes) {
    throw InvalidArgument("a job name of " + std::to_string(identity.job.size()) +
                          " bytes; at most " + std::to_string(kMaxJobBytes) + " fit an image");
  }
  if (identity.rank < 0 || identity.rank >= identity.world_size) {
    throw InvalidArgument("rank " + std::to_string(identity.rank) + " of " +
                          std::to_string(identity.world_size));
  }
  info.loans = static_cast<std::uint32_t>(loans.borrowed.size() + loans.lent.size());
  const std::size_t loans_at = kTableAt + 8 * block_digests.size();
  const std::size_t bytes = loans_at + kLoanBytes * info.loans + kFooterBytes;
  const auto t = image.subspan(info.image_bytes - bytes, bytes);
  std::memset(t.data(), 0, kTableAt);
  store(t, 0, kMagic);
  store(t, kVersionAt, trailer_version(info));
  store(t, kJobBytesAt, static_cast<std::uint32_t>(identity.job.size()));
  std::memcpy(t.data() + kJobAt, identity.job.data(), identity.job.size());
  store(t, kRankAt, static_cast<std::int32_t>(identity.rank));
  store(t, kWorldAt, static_cast<std::int32_t>(identity.world_size));
  store(t, kIdAt, identity.id.generation);
  store(t, kIdAt + 8, identity.id.step);
  store(t, kBaseAt, identity.base.generation);
  store(t, kBaseAt + 8, identity.base.step);
  store(t, kImageBytesAt, info.image_bytes);
  store(t, kDataBeginAt, info.manifest_bytes);
  store(t, kBlockBytesAt, info.block_bytes);
  store(t, kBlockCountAt, static_cast<std::uint64_t>(block_digests.size()));
  store_digest(t, kManifestDigestAt, info.manifest_digest);
  store(t, kBorrowedBytesAt, info.borrowed_bytes);
  store(t, kLoansAt, static_cast<std::uint64_t>(info.loans));
  std::memcpy(t.data() + kTableAt, block_digests.data(), block_digests.size_bytes());
  std::size_t at = loans_at;
  const auto put = [&](std::uint32_t kind, const std::vector<Loan>& list) {
    for (const auto& loan : list) {
      store(t, at, kind);
      store(t, at + 4, static_cast<std::int32_t>(loan.rank));
      store_digest(t, at + 8, loan.digest);
      at += kLoanBytes;
    }
  };
  put(kBorrowed, loans.borrowed);
  put(kLent, loans.lent);
  store(t, bytes - 32, static_cast<std::uint64_t>(bytes));
  store(t, bytes - 24, kEndMagic);
  info.image_digest = digest128(t.first(bytes - 16));
  store_digest(t, bytes - 16, info.image_digest);
}

namespace {

[[noreturn]] void refuse_sizes(const ImageInfo& info, const std::string& why) {
  throw make_error<CorruptData>("image of " + to_string(info.identity) + ": " + why,
                                info.identity.rank, info.identity.id.step);
}

// What is said of the length, against the length that there is.
void check_length(const ImageInfo& info, std::uint64_t size, Form form) {
  const bool sound = info.borrowed_bytes <= info.image_bytes;
  if (size == (form == Form::kImage || !sound ? info.image_bytes : info.replica_bytes())) return;
  const auto borrowed =
      " the " + std::to_string(info.borrowed_bytes) + " bytes that it borrows from other ranks";
  if (form == Form::kImage && sound && size == info.replica_bytes())
    refuse_sizes(info, "this is its replica, without" + borrowed + ", not the whole image");
  if (form == Form::kReplica && size == info.image_bytes)
    refuse_sizes(info, "this is the whole image, with" + borrowed + ", not its replica");
  refuse_sizes(info, "says it has " + std::to_string(info.image_bytes) + " bytes" +
                         (info.borrowed_bytes == 0
                              ? ""
                              : ", " + std::to_string(info.borrowed_bytes) + " of them borrowed") +
                         ", not " + std::to_string(size));
}

// Of a trailer of `bytes` bytes that says there are `count` blocks.
void check_sizes(const Trailer& trailer, std::uint64_t bytes, std::uint64_t count) {
  const auto& info = trailer.info;
  if (info.manifest_bytes < 8 || info.manifest_bytes > trailer.begin ||
      info.manifest_bytes % 4096 != 0) {
    refuse_sizes(info, "says its data begin at byte " + std::to_string(info.manifest_bytes));
  }
  const auto digested = trailer.begin - info.manifest_bytes;
  if (info.block_bytes == 0 || count > bytes / 8 ||
      bytes != kTableAt + 8 * count + kLoanBytes * info.loans + kFooterBytes ||
      count != block_count(digested, info.block_bytes)) {
    refuse_sizes(info, std::to_string(count) + " blocks of " + std::to_string(info.block_bytes) +
                           " bytes do not fit it");
  }
  if (info.borrowed_bytes % info.block_bytes != 0 || info.borrowed_bytes > digested) {
    refuse_sizes(info, "says it borrows " + std::to_string(info.borrowed_bytes) + " bytes, of " +
                           std::to_string(digested) + " in blocks of " +
                           std::to_string(info.block_bytes));
  }
}

}  // namespace

Trailer read_trailer(std::span<const std::byte> image, Form form) {
  const auto size = image.size();
  if (size < kTableAt + kFooterBytes)
    refuse("an image of " + std::to_string(size) + " bytes is too short for one");
  if (load<std::uint64_t>(image, size - 24) != kEndMagic) {
    refuse(
        "the last bytes are not those of an image (truncated, something appended, or never "
        "sealed)");
  }
  const auto bytes = load<std::uint64_t>(image, size - 32);
  if (bytes > size || bytes < kTableAt + kFooterBytes || bytes % 8 != 0) {
    refuse("a length of " + std::to_string(bytes) + " in an image of " + std::to_string(size));
  }
  const auto t = image.last(bytes);
  if (load<std::uint64_t>(t, 0) != kMagic) refuse("does not begin as one");
  Trailer trailer;
  auto& info = trailer.info;
  info.image_digest = load_digest(t, bytes - 16);
  if (digest128(t.first(bytes - 16)) != info.image_digest)
    refuse("its digest does not match its bytes");
  const auto version = load<std::uint32_t>(t, kVersionAt);
  if (version != kFormatVersion && version != kBorrowingVersion)
    refuse(describe_unknown_version(version));
  info.identity = read_identity(t);
  info.image_bytes = load<std::uint64_t>(t, kImageBytesAt);
  info.manifest_bytes = load<std::uint64_t>(t, kDataBeginAt);
  info.block_bytes = load<std::uint64_t>(t, kBlockBytesAt);
  info.manifest_digest = load_digest(t, kManifestDigestAt);
  info.borrowed_bytes = load<std::uint64_t>(t, kBorrowedBytesAt);
  const auto loans = load<std::uint64_t>(t, kLoansAt);
  if (loans > bytes / kLoanBytes) {
    refuse_sizes(info, std::to_string(loans) + " loans do not fit its trailer of " +
                           std::to_string(bytes) + " bytes");
  }
  info.loans = static_cast<std::uint32_t>(loans);
  if (version != trailer_version(info)) {
    refuse_sizes(info, "says it borrows " + std::to_string(info.borrowed_bytes) +
                           " bytes, and has " + std::to_string(loans) + " loans, which version " +
                           std::to_string(version) + " cannot");
  }
  check_length(info, size, form);
  trailer.begin = info.image_bytes - bytes;
  trailer.gap = info.image_bytes - size;
  const auto count = load<std::uint64_t>(t, kBlockCountAt);
  check_sizes(trailer, bytes, count);
  if (load<std::uint64_t>(image, 0) != info.manifest_bytes - 8)
    refuse_sizes(info, "its header says another length than its trailer");
  trailer.digests = t.subspan(kTableAt, 8 * count);
  trailer.loans = t.subspan(kTableAt + 8 * count, kLoanBytes * info.loans);
  return trailer;
}

Loans decode_loans(const Trailer& trailer) {
  const auto& info = trailer.info;
  Loans loans;
  for (std::size_t at = 0; at < trailer.loans.size(); at += kLoanBytes) {
    const auto kind = load<std::uint32_t>(trailer.loans, at);
    const Loan loan{load<std::int32_t>(trailer.loans, at + 4), load_digest(trailer.loans, at + 8)};
    if (kind > kLent) refuse_sizes(info, "a loan of kind " + std::to_string(kind));
    auto& list = kind == kBorrowed ? loans.borrowed : loans.lent;
    if (loan.rank < 0 || loan.rank >= info.identity.world_size || loan.rank == info.identity.rank ||
        (!list.empty() && loan.rank <= list.back().rank)) {
      refuse_sizes(info, "a loan with rank " + std::to_string(loan.rank) +
                             ": itself, none of its world, or out of order");
    }
    list.push_back(loan);
  }
  if (loans.borrowed.empty() != (info.borrowed_bytes == 0)) {
    refuse_sizes(info, std::to_string(info.borrowed_bytes) + " bytes are borrowed from " +
                           std::to_string(loans.borrowed.size()) + " ranks");
  }
  return loans;
}

}  // namespace detail

std::uint64_t trailer_size(std::uint64_t digested_bytes, std::uint64_t block_bytes,
                           std::uint32_t loans) {
  if (block_bytes == 0) throw InvalidArgument("blocks of 0 bytes");
  return detail::kTableAt + 8 * detail::block_count(digested_bytes, block_bytes) +
         detail::kLoanBytes * loans + detail::kFooterBytes;
}

}  // namespace meshstage
