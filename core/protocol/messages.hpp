#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/protocol/choose.hpp>

/// The messages between ranks. Plain values; codec.hpp turns them into bytes and back.
/// "Tree" messages travel between a rank and its parent (r - 1) / 2 or its children 2r + 1 and
/// 2r + 2; "partner" messages between an owner and its holders, or lenders.
/// The protocol assumes of a link: messages of one pair in one generation arrive in order, and
/// after a lost message no further one arrives.
namespace meshstage::protocol {

// --- what ranks wish for, and what the root orders ---

/// Travels up with the votes of a step: the wishes of the sender and of all ranks below it. The
/// wish of one rank is the wish of all.
struct Wishes {
  bool end = false;      ///< the job is to end, at the same step for all ranks
  bool persist = false;  ///< this step is to go to disk
  /// Steps that became complete since one was sent to disk: the largest that any rank knows, so
  /// that a replacement does not start counting anew.
  std::uint64_t since_disk = 0;
  friend bool operator==(const Wishes&, const Wishes&) = default;
};
/// The root decides the orders together with a step. Each rank that knows that the step is complete
/// knows its orders.
struct Orders {
  bool end = false;      ///< the next step that is staged is the last one
  bool persist = false;  ///< this step goes to disk
  friend bool operator==(const Orders&, const Orders&) = default;
};

// --- a round, partner ---

/// Owner to holder: the owner stages this step. The base tells the outcome of all steps before: the
/// base is complete, and every step of this generation between base and id has failed (rule 3).
struct Offer {
  ImageId id, base;
  ImageSizes sizes;
  Orders base_orders{};  ///< the base's orders, because an offer may overtake its Complete
  friend bool operator==(const Offer&, const Offer&) = default;
};
/// Holder to owner: the holder's slot is WRITING and has room, so the owner may send.
struct Accept {
  ImageId id;
  bool need_manifest = true;
  /// The digest of each block that the slot holds already, by the holder's own table. Empty: send
  /// all blocks (rule 17).
  std::vector<Digest> held{};
  friend bool operator==(const Accept&, const Accept&) = default;
};
/// Owner to holder: the own image is sealed, and this is its digest.
struct Sealed {
  ImageId id;
  Digest image_digest;
  friend bool operator==(const Sealed&, const Sealed&) = default;
};

/// Owner to lender (Config::lenders): the owner's image is sealed, and its replicas borrow these
/// bytes.
struct Borrow {
  ImageId id;
  std::uint64_t bytes = 0;  ///< 0: nothing
  Digest digest{};          ///< of the borrowed bytes
  friend bool operator==(const Borrow&, const Borrow&) = default;
};
/// Lender to owner: the lender has other bytes, so the owner borrows nothing from it any more. The
/// step fails.
struct Differ {
  ImageId id;
  friend bool operator==(const Differ&, const Differ&) = default;
};

// --- a round, tree ---

/// To the parent: the sender and all ranks below it vote yes.
struct Yes {
  ImageId id;
  Wishes wishes{};
  friend bool operator==(const Yes&, const Yes&) = default;
};
/// To the children: every rank voted yes.
struct Complete {
  ImageId id;
  Orders orders{};
  friend bool operator==(const Complete&, const Complete&) = default;
};
/// To every tree neighbour: `rank` voted no, so the step has failed. One no decides.
struct Failed {
  ImageId id;
  int rank = -1;
  std::string why;
  friend bool operator==(const Failed&, const Failed&) = default;
};

/// To every tree neighbour, but not back: a trainer has waited `times` deadlines for this step's
/// outcome, or for the recovery (kNoImage). Each rank that keeps the others waiting ends the
/// generation and names itself. A rank whose image is still on its way is not one of them.
struct Overdue {
  ImageId id;
  std::uint32_t times = 1;
  friend bool operator==(const Overdue&, const Overdue&) = default;
};

// --- images on their way, between an owner, its holders and those who complete its replicas ---

/// The contents of a stream's pieces.
enum class Content : std::uint8_t {
  kImage,  ///< an image or a replica
  kLent,   ///< bytes that the receiver's own image borrows: the ranges of a Want, one after another
};
/// Sender to receiver, just before the pieces of one image. The receiver posts no receive before
/// StreamStart comes, so an image that never comes leaves no receive behind. Then the receiver
/// takes every piece, if need be into scratch memory, so that both ends stay in step.
struct StreamStart {
  int owner = 0;  ///< whose image
  ImageId id;
  Content content = Content::kImage;
  bool with_manifest = true;  ///< false: the receiver's slot has the same manifest already
  /// kLent: of all ranges together; of the fields below only block_bytes is set
  std::uint64_t image_bytes = 0;
  std::uint64_t manifest_bytes = 0;
  std::uint64_t block_bytes = 0;
  std::uint64_t borrowed_bytes =
      0;                         ///< the bytes that a replica leaves out; 0: a whole image travels
  std::uint32_t loans = 0;       ///< as ImageInfo's
  bool masked = false;           ///< masks say which pieces stay, because the receiver holds them
  std::uint8_t connections = 1;  ///< over so many of the connections between the two ranks
  friend bool operator==(const StreamStart&, const StreamStart&) = default;
};
/// A storage by its name in an image's header.
struct NamedStorage {
  std::string name;
  std::uint64_t bytes = 0;
  friend bool operator==(const NamedStorage&, const NamedStorage&) = default;
};
/// Borrower to lender, when the borrower fetches a replica of its image: asks for these storages of
/// the lender's own image of that step. The lender answers with a stream of kLent.
struct Want {
  ImageId id;
  std::vector<NamedStorage> storages;  ///< the stream brings them in this order
  friend bool operator==(const Want&, const Want&) = default;
};

// --- recovery, tree ---

/// To the parent: the claims of the sender and of all ranks below it. First for slots, then the
/// answer to each AskDisk: for files, stray vaults and, where it says so, slots.
struct Have {
  bool disk = false;
  std::vector<Claim> claims;  ///< disk: what the newest AskDisk asks for
  /// The newest step that is known to have been complete: by the Store's note, a base in any header
  /// (verified or not), or a file's name. kNoImage: no step is known.
  ImageId evidence;
  /// The images found damaged, for people: text for the error of a recovery that finds nothing
  /// whole.
  std::string damage{};
  /// The newest image whose claims did not fit a message and were left out. An image that is not
  /// newer may be covered although the claims do not show it. kNoImage: no claim was left out.
  ImageId beyond{};
  friend bool operator==(const Have&, const Have&) = default;
};
/// To the children: asks for the claims to files, and to images in stray vaults, newer than
/// `newer_than` (kNoImage: all). Comes again, with `up_to`, for claims that were left out.
struct AskDisk {
  ImageId newer_than;
  /// If the id exists: asks for what the claims before left out (Have::beyond), namely for the
  /// claims to images that are not newer than this, in slots too. Each rank answers with what it
  /// has verified in this recovery.
  ImageId up_to{};
  friend bool operator==(const AskDisk&, const AskDisk&) = default;
};
/// Why a recovery fails; the same for every rank.
struct Failure {
  ErrorKind kind = ErrorKind::kUnrecoverable;
  int rank = -1;           ///< the rank that failed, -1 if none
  std::vector<int> ranks;  ///< kUnrecoverable: the ranks without an image
  std::string path;        ///< kStructureMismatch: the first differing path
  std::string why;         ///< one sentence for people
  friend bool operator==(const Failure&, const Failure&) = default;
};
/// To the children: the step that is recovered (kNoImage: none, start at step 0) and all transfers.
struct Choice {
  ImageId id, base;
  std::vector<Transfer> transfers;
  friend bool operator==(const Choice&, const Choice&) = default;
};
/// To the parent: the sender and all ranks below it have their images, and have compared their
/// structures. `mismatch`, only if Config::any_world: the structure of one of them differs.
struct Ready {
  std::optional<Failure> mismatch{};
  friend bool operator==(const Ready&, const Ready&) = default;
};
/// To the children: all ranks are ready, and the step counts as complete. Each rank restores its
/// trainer.
struct Established {
  ImageId id;
  friend bool operator==(const Established&, const Established&) = default;
};
/// To every peer, partners too: the recovery has failed, and no trainer was touched. A rank may end
/// right after GiveUp, and on every link the cause must come before the end-of-file.
struct GiveUp {
  Failure failure;
  friend bool operator==(const GiveUp&, const GiveUp&) = default;
};

/// To the children: every rank that has an image of this step of another number of ranks in memory
/// makes it a file. First the owners' own images; `replicas`: then the replicas of those owners of
/// which there is no file yet.
/// `mismatch`: the step is the chosen one, of this number of ranks, and is cut anew: every rank
/// makes its own image a file, if the job writes files. The mismatch is the one that the root gives
/// to all ranks.
struct Publish {
  OldStep step;
  bool replicas = false;
  std::optional<Failure> mismatch{};
  friend bool operator==(const Publish&, const Publish&) = default;
};
/// To the parent: the sender and all ranks below it have carried out Publish. `failed`: the images
/// that could not be written, for people; empty if nothing failed. `written`: the ranks of the old
/// job whose images are files now.
struct Published {
  std::string failed{};
  std::vector<int> written{};
  friend bool operator==(const Published&, const Published&) = default;
};

// --- persistence, end, death; tree ---

/// To the parent: the sender and all ranks below it have `id` on disk.
struct OnDisk {
  ImageId id;
  friend bool operator==(const OnDisk&, const OnDisk&) = default;
};
/// To the children: every rank has `id` on disk; older files may be removed (rule 10).
struct AllOnDisk {
  ImageId id;
  friend bool operator==(const AllOnDisk&, const AllOnDisk&) = default;
};
/// To the parent: the sender and all ranks below it called finish().
struct WantFinish {
  friend bool operator==(const WantFinish&, const WantFinish&) = default;
};
/// To the children: every rank called finish(), so each removes its vault.
struct Finish {
  friend bool operator==(const Finish&, const Finish&) = default;
};
/// To every tree neighbour, before anything is closed: `rank` died or is silent (rule 7),
/// or another start owns the job (rule 12; rank -1).
struct Death {
  int rank = -1;
  ErrorKind kind = ErrorKind::kPeerLost;  ///< kPeerLost, kPeerSilent or kFenced
  std::string why;
  friend bool operator==(const Death&, const Death&) = default;
};

// --- the trainer's collectives; tree ---

/// To a tree neighbour while a trainer waits long in a collective: what the collectives of the
/// sender, and of all ranks behind it as the receiver sees the tree, have moved. The engine's own
/// message (core/replicate/collective_progress.hpp): transition() refuses it.
struct Moved {
  std::uint64_t count = 0;  ///< rises with the bytes; never falls in a generation
  bool asks = false;        ///< one of those ranks waits, so they ask for the receiver's counts
  friend bool operator==(const Moved&, const Moved&) = default;
};

using Body = std::variant<Offer, Accept, Sealed, Yes, Complete, Failed, Have, AskDisk, Choice,
                          Ready, Established, GiveUp, OnDisk, AllOnDisk, WantFinish, Finish, Death,
                          Borrow, Differ, StreamStart, Want, Overdue, Publish, Published, Moved>;

/// A message names its generation; a rank in another generation ignores it (rule 1).
struct Message {
  std::uint64_t generation = 0;
  Body body;
  friend bool operator==(const Message&, const Message&) = default;
};

/// "offer", "want-finish", ...
MESHSTAGE_API const char* name_of(const Body& body) noexcept;

}  // namespace meshstage::protocol
