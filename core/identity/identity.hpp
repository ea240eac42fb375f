#pragma once
#include <compare>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/identity/digest.hpp>

namespace meshstage {

/// Identifies a snapshot of a job: the step, and the generation that staged it.
/// Ordered by generation first; images of different generations never combine.
struct ImageId {
  std::uint64_t generation = 0;  ///< 0 means "none"; core/generation says what it is.
  std::uint64_t step = 0;
  friend auto operator<=>(const ImageId&, const ImageId&) = default;
  /// False for kNoImage.
  [[nodiscard]] constexpr bool exists() const noexcept { return generation != 0; }
};

/// No image: the base of a first step, for example.
inline constexpr ImageId kNoImage{};

/// "generation 3, step 85" (the generation as generation_in_run() has it), or "none".
MESHSTAGE_API std::string to_string(ImageId id);

/// Identifies an image: job, rank, generation and step, and the image's base. Part of every image's
/// trailer.
struct ImageIdentity {
  std::string job;     ///< At most kMaxJobBytes bytes.
  int rank = 0;        ///< The rank whose state it is, wherever it lies.
  int world_size = 1;  ///< World size of the generation that staged it.
  ImageId id;
  /// The newest image that was complete when this one was staged, or kNoImage.
  ImageId base = kNoImage;
  friend bool operator==(const ImageIdentity&, const ImageIdentity&) = default;
};

/// Job names longer than this do not fit an image's trailer.
inline constexpr std::size_t kMaxJobBytes = 64;

/// True for [A-Za-z0-9._-]{1,64}, and neither "." nor "..": job names become parts of file names.
[[nodiscard]] MESHSTAGE_API bool is_valid_job_name(std::string_view job) noexcept;

/// `job "gpt2", rank 2 of 4, generation 3, step 85`.
MESHSTAGE_API std::string to_string(const ImageIdentity& identity);

/// Storages that the images of two ranks have byte for byte at the same step. The *borrower*'s
/// replicas leave the storages out, because the *lender*'s own image has them.
struct Loan {
  int rank = 0;   ///< The other rank.
  Digest digest;  ///< Digest of the storages' bytes, by name ascending; equal in both images.
  friend bool operator==(const Loan&, const Loan&) = default;
};

/// The loans in an image's trailer, by rank ascending.
struct Loans {
  std::vector<Loan> borrowed;  ///< One for each lender of the image's replicas.
  std::vector<Loan> lent;      ///< One for each borrower of the image.
  friend bool operator==(const Loans&, const Loans&) = default;
};

/// The description of a whole, sealed image, as its trailer has it.
struct ImageInfo {
  ImageIdentity identity;
  std::uint64_t image_bytes = 0;  ///< From the first byte of the header to the last of the trailer.
  std::uint64_t manifest_bytes = 0;  ///< Where the data section begins; a multiple of 4096.
  std::uint64_t block_bytes =
      0;                   ///< Unit of the block digests, counted from the data section's begin.
  Digest manifest_digest;  ///< Of bytes [0, manifest_bytes); the same while the structure stays.
  Digest image_digest;     ///< Digest of the trailer, which has the digests of all other bytes.
  /// Bytes at the front of the data section that a replica leaves out, because another rank has
  /// those storages too (core/image/replica.hpp). Whole blocks; 0 if nothing is borrowed.
  std::uint64_t borrowed_bytes = 0;
  /// How many Loans the trailer has, borrowed and lent together.
  std::uint32_t loans = 0;
  /// Bytes of the image's replica: the manifest and the bytes behind the borrowed ones.
  [[nodiscard]] std::uint64_t replica_bytes() const noexcept {
    return image_bytes - borrowed_bytes;
  }
  friend bool operator==(const ImageInfo&, const ImageInfo&) = default;
};

}  // namespace meshstage
