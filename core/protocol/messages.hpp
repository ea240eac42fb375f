#pragma once
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/protocol/choose.hpp>

/// What ranks say to each other. Plain values; codec.hpp turns them into bytes and back.
/// "Tree" messages travel between a rank and its parent (r - 1) / 2 or its children 2r + 1 and
/// 2r + 2; "partner" messages between an owner and its holders, or lenders.
/// Assumed of a link: messages of one pair in one generation arrive in order, or not at all
/// (after a lost one, none that follow).
namespace meshstage::protocol {

// --- what ranks wish for, and what the root orders ---

/// Travels up with the votes of a step: what the sender and everything below it wishes for. The
/// wish of one rank is the wish of all.
struct Wishes {
  bool end = false;      ///< the job is to end, at a step that is the same for all
  bool persist = false;  ///< this step is to go to disk
  /// Steps that became complete since one was sent to disk: the largest that any rank knows, so
  /// that a replacement does not begin to count anew.
  std::uint64_t since_disk = 0;
  friend bool operator==(const Wishes&, const Wishes&) = default;
};
/// Decided by the root together with a step, and known wherever the step is known to be complete.
struct Orders {
  bool end = false;      ///< the next step that is staged is the last one
  bool persist = false;  ///< this step goes to disk
  friend bool operator==(const Orders&, const Orders&) = default;
};

// --- a round, partner ---

/// Owner to holder: this step is being staged. Its base says all that came before: the base is
/// complete, and every step of this generation between base and id has failed (rule 3).
struct Offer {
  ImageId id, base;
  ImageSizes sizes;
  Orders base_orders{};  ///< what came with the base: an offer may overtake Complete
  friend bool operator==(const Offer&, const Offer&) = default;
};
/// Holder to owner: the slot is ready (WRITING, receives posted); send.
struct Accept {
  ImageId id;
  bool need_manifest = true;
  friend bool operator==(const Accept&, const Accept&) = default;
};
/// Owner to holder: the own image is sealed, and this is its digest.
struct Sealed {
  ImageId id;
  Digest image_digest;
  friend bool operator==(const Sealed&, const Sealed&) = default;
};

/// Owner to lender (Config::lenders): the own image is sealed, and its replicas borrow this.
struct Borrow {
  ImageId id;
  std::uint64_t bytes = 0;  ///< 0: nothing
  Digest digest{};          ///< of those
  friend bool operator==(const Borrow&, const Borrow&) = default;
};
/// Lender to owner: these bytes differ here; borrow nothing from this rank any more. The step
/// fails.
struct Differ {
  ImageId id;
  friend bool operator==(const Differ&, const Differ&) = default;
};

// --- a round, tree ---

/// To the parent: the sender and everything below it votes yes.
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

// --- images on their way, between an owner, its holders and those who complete its replicas ---

/// What the pieces of a stream are.
enum class Content : std::uint8_t {
  kImage,  ///< an image or a replica
  kLent,   ///< what the receiver's own image borrows: the ranges of a Want, one after another
};
/// Sender to receiver, just before the pieces of one image: they come now. Until it has arrived the
/// receiver posts no receive, so an image that never comes leaves none behind; after it the
/// receiver takes every piece, if need be into scratch memory, so that the stream stays in step.
struct StreamStart {
  int owner = 0;  ///< whose image
  ImageId id;
  Content content = Content::kImage;
  bool with_manifest = true;      ///< false: the receiver's slot has the same manifest already
  std::uint64_t image_bytes = 0;  ///< kLent: of all ranges together, and nothing below but blocks
  std::uint64_t manifest_bytes = 0;
  std::uint64_t block_bytes = 0;
  std::uint64_t borrowed_bytes = 0;  ///< a replica travels, without these; 0: a whole image
  std::uint32_t loans = 0;           ///< as ImageInfo's
  friend bool operator==(const StreamStart&, const StreamStart&) = default;
};
/// A storage by its name in an image's header.
struct NamedStorage {
  std::string name;
  std::uint64_t bytes = 0;
  friend bool operator==(const NamedStorage&, const NamedStorage&) = default;
};
/// A borrower that fetches a replica of its image, to a lender: send these storages of your own
/// image of that step. Answered by a stream of kLent.
struct Want {
  ImageId id;
  std::vector<NamedStorage> storages;  ///< in the order in which they are to come
  friend bool operator==(const Want&, const Want&) = default;
};

// --- recovery, tree ---

/// To the parent: what the sender and everything below it has. The first time slots, then files.
struct Have {
  bool disk = false;
  std::vector<Claim> claims;
  /// The newest step that is known to have been complete: the Store's note, a base in any header
  /// (verified or not), a file's name. kNoImage: there was none.
  ImageId evidence;
  /// What was found damaged, for people: the error of a recovery that finds nothing whole.
  std::string damage{};
  /// The newest image of which claims were left out on the way, for want of room in a message: what
  /// is not newer may be covered though the claims do not show it. kNoImage: all are here.
  ImageId beyond{};
  friend bool operator==(const Have&, const Have&) = default;
};
/// To the children: say which files newer than this you have (kNoImage: all).
struct AskDisk {
  ImageId newer_than;
  friend bool operator==(const AskDisk&, const AskDisk&) = default;
};
/// To the children: what is recovered (kNoImage: nothing, start at step 0) and who fetches what.
struct Choice {
  ImageId id, base;
  std::vector<Transfer> transfers;
  friend bool operator==(const Choice&, const Choice&) = default;
};
/// To the parent: the sender and everything below it has its images and a matching structure.
struct Ready {
  friend bool operator==(const Ready&, const Ready&) = default;
};
/// To the children: all are ready; the step counts as complete; restore the trainer.
struct Established {
  ImageId id;
  friend bool operator==(const Established&, const Established&) = default;
};
/// Why a recovery fails, for every rank the same.
struct Failure {
  ErrorKind kind = ErrorKind::kUnrecoverable;
  int rank = -1;           ///< the rank it is about, -1 if none
  std::vector<int> ranks;  ///< kUnrecoverable: the ranks without an image
  std::string path;        ///< kStructureMismatch: the first differing path
  std::string why;         ///< one sentence for people
  friend bool operator==(const Failure&, const Failure&) = default;
};
/// To every peer, partners too (a rank may end right after it, and the cause must come before the
/// end-of-file on every link): the recovery has failed; no trainer was touched.
struct GiveUp {
  Failure failure;
  friend bool operator==(const GiveUp&, const GiveUp&) = default;
};

// --- persistence, end, death; tree ---

/// To the parent: the sender and everything below it has `id` on disk.
struct OnDisk {
  ImageId id;
  friend bool operator==(const OnDisk&, const OnDisk&) = default;
};
/// To the children: every rank has `id` on disk; older files may go (rule 10).
struct AllOnDisk {
  ImageId id;
  friend bool operator==(const AllOnDisk&, const AllOnDisk&) = default;
};
/// To the parent: the sender and everything below it called finish().
struct WantFinish {
  friend bool operator==(const WantFinish&, const WantFinish&) = default;
};
/// To the children: everyone called finish(); remove the vaults.
struct Finish {
  friend bool operator==(const Finish&, const Finish&) = default;
};
/// To every tree neighbour, before anything is closed: `rank` died or is silent (rule 7).
struct Death {
  int rank = -1;
  ErrorKind kind = ErrorKind::kPeerLost;  ///< kPeerLost or kPeerSilent
  std::string why;
  friend bool operator==(const Death&, const Death&) = default;
};

using Body = std::variant<Offer, Accept, Sealed, Yes, Complete, Failed, Have, AskDisk, Choice,
                          Ready, Established, GiveUp, OnDisk, AllOnDisk, WantFinish, Finish, Death,
                          Borrow, Differ, StreamStart, Want>;

/// A message says to which generation it belongs; a rank of another one ignores it (rule 1).
struct Message {
  std::uint64_t generation = 0;
  Body body;
  friend bool operator==(const Message&, const Message&) = default;
};

/// "offer", "want-finish", ...
MESHSTAGE_API const char* name_of(const Body& body) noexcept;

}  // namespace meshstage::protocol
