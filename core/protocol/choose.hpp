#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/image/replica.hpp>

/// What a generation recovers: pure functions over the images that the ranks claim to have.
namespace meshstage::protocol {

/// What a receiver must know before the first byte of an image arrives. Opaque to the protocol.
struct ImageSizes {
  std::uint64_t image_bytes = 0;     ///< the whole image
  std::uint64_t manifest_bytes = 0;  ///< its beginning up to the data section
  Digest manifest_digest{};          ///< a slot with this manifest need not be sent it again
  std::uint64_t borrowed_bytes = 0;  ///< as ImageInfo::borrowed_bytes: what a replica leaves out
  std::uint32_t loans = 0;           ///< as ImageInfo::loans
  friend bool operator==(const ImageSizes&, const ImageSizes&) = default;
};

/// Where a copy of an image lies, nearest first.
enum class Place : std::uint8_t {
  kOwnSlot,   ///< in the memory of the rank whose image it is
  kHeldSlot,  ///< in the memory of another rank
  kOwnFile,   ///< on the disk of the rank whose image it is
  kHeldFile,  ///< on the disk of another rank
};

/// "own memory", "holder memory", "disk": as the drill prints it.
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
  /// What replicas of this image borrow, by lender.
  std::vector<Loan> borrowed{};
  /// What this image lends to replicas of other ranks, by borrower.
  std::vector<Loan> lent{};
  /// Whether this copy borrows something: those in the memory of holders do.
  [[nodiscard]] bool needs_lenders() const noexcept {
    return place == Place::kHeldSlot && !borrowed.empty();
  }
  friend bool operator==(const Claim&, const Claim&) = default;
};

/// The claim to an image, or a replica, that says this of itself.
[[nodiscard]] MESHSTAGE_API Claim claim_of(const ImageInfo& info, Loans loans, int at, Place place,
                                           int slot);

/// One image that has to travel before redundancy is whole again. `source.at == to` is a load from
/// the rank's own disk. The destination writes it into a slot of its choice: an own slot if
/// `to == source.owner`, else one it holds for `source.owner`. An owner that fetches a replica gets
/// what that borrows from its lenders.
struct Transfer {
  Claim source;
  int to = 0;
  friend bool operator==(const Transfer&, const Transfer&) = default;
};

/// The claims from which a whole image can be had: those that borrow nothing, and replicas for
/// which there is the own image of each lender. Left out are claims whose loans differ from what
/// their lender's image says it lends: such an image was never complete, and could not be made
/// redundant again.
MESHSTAGE_API std::vector<Claim> whole_claims(std::span<const Claim> claims);

/// Leaves out claims, those of the oldest image first and each image's all together, until the rest
/// is not more than `most_bytes`, as messages have them. Returns the newest id that was left out;
/// kNoImage: none was.
MESHSTAGE_API ImageId leave_out_oldest(std::vector<Claim>& claims, std::size_t most_bytes);

/// The newest image id, generation first, of which every rank 0 .. world_size - 1 has at least one
/// copy; kNoImage if there is none. Complete marks play no part (rule 5b).
/// \param claims whole ones.
/// \param generations_apart false for the explorer only: what happens without rule 1.
MESHSTAGE_API ImageId choose(std::span<const Claim> claims, int world_size,
                             bool generations_apart = true);

/// Whether two ids are the same image: yes if they are equal. (`generations_apart` as above.)
MESHSTAGE_API bool same_image(ImageId a, ImageId b, bool generations_apart = true);

/// Whether the owner of a claim is linked to all its lenders.
using CanBorrow = std::function<bool(const Claim&)>;

/// Every owner and every holder that lacks `id`, with its nearest source: the owner's memory, a
/// holder's memory, the destination's own disk, another's disk. Owners are sent whole claims
/// only, and of these what it `can_borrow` (null: all); for a holder a replica does that borrows
/// the same.
/// \param holders holders[r] are the ranks that hold r's replica.
/// \param restore_holders for the explorer only: what happens if only owners are restored.
MESHSTAGE_API std::vector<Transfer> plan_transfers(std::span<const Claim> claims, ImageId id,
                                                   const std::vector<std::vector<int>>& holders,
                                                   bool restore_holders = true,
                                                   bool generations_apart = true,
                                                   const CanBorrow& can_borrow = {});

/// The ranks to name when nothing is covered: those without a copy of the id that lacks the fewest
/// (the newest such); all ranks if there is no claim. `claims`: whole ones.
MESHSTAGE_API std::vector<int> ranks_without_image(std::span<const Claim> claims, int world_size);

}  // namespace meshstage::protocol
