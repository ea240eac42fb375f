#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/identity/identity.hpp>

/// Choosing the step that a generation recovers: pure functions over the images that ranks claim to
/// have.
namespace meshstage::protocol {

/// The sizes that a receiver must know before the first byte of an image arrives. The protocol only
/// passes them on.
struct ImageSizes {
  std::uint64_t image_bytes = 0;     ///< the whole image
  std::uint64_t manifest_bytes = 0;  ///< its beginning up to the data section
  Digest manifest_digest{};          ///< a slot that has this manifest need not get it again
  std::uint64_t borrowed_bytes = 0;  ///< as ImageInfo::borrowed_bytes: what a replica leaves out
  std::uint32_t loans = 0;           ///< as ImageInfo::loans
  friend bool operator==(const ImageSizes&, const ImageSizes&) = default;
};

/// The place of a copy of an image.
enum class Place : std::uint8_t {
  kOwnSlot,   ///< in the memory of the rank whose image it is
  kHeldSlot,  ///< in the memory of another rank
  kOwnFile,   ///< on the disk of the rank whose image it is
  kHeldFile,  ///< on the disk of another rank
  kStray,     ///< in a stray vault: on the claimer's host, of a rank that sits elsewhere now
  /// of another number of ranks, in memory on the claimer's host where nobody writes: it stays
  /// there until a step of this number is complete
  kKept,
};
[[nodiscard]] constexpr bool is_file(Place place) noexcept {
  return place == Place::kOwnFile || place == Place::kHeldFile;
}
/// A slot of the claimer's own vault.
[[nodiscard]] constexpr bool is_slot(Place place) noexcept {
  return place == Place::kOwnSlot || place == Place::kHeldSlot;
}

/// A slot of another vault than the claimer's present one: Claim::vault says whose.
[[nodiscard]] constexpr bool is_left(Place place) noexcept {
  return place == Place::kStray || place == Place::kKept;
}

/// "own memory", "holder memory", "stray vault", "kept memory", "disk": as the drill prints it.
MESHSTAGE_API const char* to_string(Place place) noexcept;

/// One image, or replica of an image, whose digests were verified just now.
struct Claim {
  int at = 0;     ///< the rank that has it
  int owner = 0;  ///< the rank whose image it is
  Place place = Place::kOwnSlot;
  int slot = 0;        ///< which of the two slots; 0 for files
  int world_size = 0;  ///< of the job that made it
  ImageId id{};
  ImageId base{};
  ImageSizes sizes{};
  Digest image_digest{};
  /// The loans that replicas of this image borrow, by lender.
  std::vector<Loan> borrowed{};
  /// The loans that this image lends to replicas of other ranks, by borrower.
  std::vector<Loan> lent{};
  int vault = -1;  ///< kStray, kKept: the rank whose vault it is
  /// True if this copy is without what the image borrows: a replica, in memory.
  [[nodiscard]] bool is_replica() const noexcept {
    return place == Place::kHeldSlot || (is_left(place) && vault != owner);
  }
  /// Whether this copy borrows something.
  [[nodiscard]] bool needs_lenders() const noexcept { return is_replica() && !borrowed.empty(); }
  friend bool operator==(const Claim&, const Claim&) = default;
};

/// A step that a job of another number of ranks staged.
struct OldStep {
  ImageId id{};  ///< kNoImage: there is none
  int world_size = 0;
  friend bool operator==(const OldStep&, const OldStep&) = default;
};

/// The claim to an image or a replica whose trailer gives `info` and `loans`.
[[nodiscard]] MESHSTAGE_API Claim claim_of(const ImageInfo& info, Loans loans, int at, Place place,
                                           int slot);

/// One image that has to travel before redundancy is whole again. `source.at == to` is a load from
/// the rank's own disk, or from a stray vault that it took. The destination chooses the slot: an
/// own slot if `to == source.owner`, else a slot of its ward `source.owner`. An owner that fetches
/// a replica also gets the borrowed bytes from its lenders.
struct Transfer {
  Claim source;
  int to = 0;
  friend bool operator==(const Transfer&, const Transfer&) = default;
};

/// The claims from which a whole image can be had: those that borrow nothing, and replicas for
/// which each lender's own image is claimed, too. A claim whose loans differ from the loans in its
/// lender's image is left out: that image was never complete, and could not be made redundant
/// again.
MESHSTAGE_API std::vector<Claim> whole_claims(std::span<const Claim> claims);

/// Whether an AskDisk that has `up_to` asks for the claims to that image.
[[nodiscard]] constexpr bool asked_again(ImageId id, ImageId newer_than, ImageId up_to) noexcept {
  return id > newer_than && id <= up_to;
}

/// Leaves out claims until the rest takes at most `most_bytes` in messages: the oldest image's
/// claims first, and all claims to one image together. Returns the newest id that was left out;
/// kNoImage if none was.
MESHSTAGE_API ImageId leave_out_oldest(std::vector<Claim>& claims, std::size_t most_bytes);

/// The newest image id, generation first, for which there is a copy of the image of every rank
/// below world_size; kNoImage if there is none. Complete marks play no part (rule 5b).
/// \param claims claims as whole_claims() returns them.
/// \param generations_apart false only in the explorer, which removes rule 1.
MESHSTAGE_API ImageId choose(std::span<const Claim> claims, int world_size,
                             bool generations_apart = true);

/// True if two ids are equal. `generations_apart` as above.
MESHSTAGE_API bool same_image(ImageId a, ImageId b, bool generations_apart = true);

/// True if the owner of a claim is linked to all its lenders.
using CanBorrow = std::function<bool(const Claim&)>;

/// A transfer for every owner and every holder that lacks `id`, from its nearest source: memory (on
/// the destination's own host, then at a rank that keeps the owner's images, then anywhere), the
/// destination's own disk, another rank's disk. An owner gets only whole claims that it
/// `can_borrow` (null: all). For a holder a replica that borrows the same bytes suffices. \param
/// holders holders[r] are the ranks that hold r's replica. \param restore_holders false only in the
/// explorer, which then restores owners alone.
MESHSTAGE_API std::vector<Transfer> plan_transfers(std::span<const Claim> claims, ImageId id,
                                                   const std::vector<std::vector<int>>& holders,
                                                   bool restore_holders = true,
                                                   bool generations_apart = true,
                                                   const CanBorrow& can_borrow = {});

/// The ranks that an error names when no step is covered: those without a copy of the id that the
/// fewest ranks lack (the newest such id); all ranks if there is no claim. `claims` as
/// whole_claims() returns them.
MESHSTAGE_API std::vector<int> ranks_without_image(std::span<const Claim> claims, int world_size);

}  // namespace meshstage::protocol
