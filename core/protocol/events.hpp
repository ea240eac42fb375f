#pragma once
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/protocol/choose.hpp>
#include <meshstage/core/protocol/messages.hpp>

/// Events: what the driver reports to the protocol. In production it is core/replicate's
/// Driver.
namespace meshstage::protocol {

/// A generation was formed, with a higher number than every one before. The protocol forgets the
/// old generation.
struct Formed {
  std::uint64_t generation = 0;
};
/// Answer to VerifySlots: every sealed slot, own and held, whose digests are right.
/// \c evidence: the newest of the Store's note and of the bases in all headers, verified or not.
/// \c damage: which images are damaged, and why (see Have).
struct SlotsVerified {
  std::vector<Claim> claims;
  ImageId evidence{};
  std::string damage{};
};
/// Answer to VerifyDisk: every file and image in a stray vault that it asks for (\c up_to: slots,
/// too) and whose digests are right. \c evidence: the newest id in any file's name, read or not,
/// and of the bases in strays' headers. Empty if there is no directory. \c damage: see
/// SlotsVerified. With \c up_to damage, named and room were answered before, and stay empty.
struct FilesVerified {
  std::vector<Claim> claims;
  ImageId evidence{};
  std::string damage{};
  /// Root, if Config::any_world: the steps of another number of ranks of which the disk names a
  /// file of every rank, ascending. The ranks' claims say which of the files are proven.
  std::vector<OldStep> named{};
  /// Root, if Config::any_world: the bytes that the disk of all ranks has room for.
  std::uint64_t room = ~std::uint64_t{0};
};
/// Answer to PublishOld: the files are written and synced. \c failed: the images that could not be
/// written, and why, for people; empty if nothing failed. \c written: the old ranks whose images
/// are files now, each byte proven just now.
struct OldPublished {
  std::string failed{};
  std::vector<int> written{};
};
/// Answer to FindOld. \c named: as FilesVerified::named. \c proven: if it was to be proven, the
/// newest of these of which the root has read and proven a file of every rank.
struct OldFound {
  std::vector<OldStep> named{};
  OldStep proven{};
};
/// Answer to Connect: each of its ranks is connected.
struct Connected {};
/// Answer to a Fetch: the image is verified and sealed.
struct Fetched {
  int owner = 0;
};
/// Answer to a Fetch, Serve or ServeLent that failed although no rank is known to have died.
struct FetchFailed {
  int owner = 0;
  ErrorKind kind = ErrorKind::kIo;
  std::string why;
};
/// Answer to CheckStructure: an empty text means equal.
struct StructureChecked {
  std::string path;
  std::string mismatch;
};
/// The trainer stages a step. The protocol answers at once with WriteOwn, Announce(failed) or
/// Refuse.
struct StageRequested {
  std::uint64_t step = 0;
  ImageSizes sizes{};
};
/// This rank leaves the step out, because it is busy or the step cannot be prepared: a no vote.
struct StageSkipped {
  std::uint64_t step = 0;
  std::string why{};  ///< Empty: the rank was busy.
};
struct OwnSealed {
  ImageId id;
  Digest image_digest{};
  /// The bytes that the replicas borrow, in the order of this rank's Config::lenders. May be
  /// shorter: then nothing is borrowed from the other lenders.
  std::vector<Borrow> borrowed{};
  /// The digests of what this image lends, in the order of Config::borrowers. May be shorter: then
  /// a Borrow of one of the other borrowers counts as different.
  std::vector<Digest> lent{};
};
struct OwnFailed {
  ImageId id;
  std::string why;
};
/// The slot asked for by AcceptReplica is WRITING and has room.
struct ReplicaReady {
  int ward = 0;
  ImageId id;
  bool need_manifest = true;
  std::vector<Digest> held{};  ///< as Accept's
};
/// The replica arrived whole, with the digest of ExpectDigest, and is sealed.
struct ReplicaSealed {
  int ward = 0;
  ImageId id;
};
struct ReplicaFailed {
  int ward = 0;
  ImageId id;
  std::string why;
};
/// Answer to AskStore.
struct StoreAnswered {
  enum class Found : std::uint8_t {
    kNewest,      ///< The Store also has the note, if `note` was set.
    kSuperseded,  ///< A newer generation was claimed, so this generation decides nothing any more.
    kFenced,      ///< ... by another start, which owns the job now.
    kNothing,     ///< The Store did not answer in time; it may have the note.
  };
  ImageId id;
  Found found = Found::kNewest;
  std::string why{};  ///< Unless kNewest.
};
/// The own image and the whole replicas of this step, verified just now, are synced files.
struct Persisted {
  ImageId id;
};
/// The trainer's wishes, which go with this rank's next vote. A wish cannot be withdrawn.
struct Wished {
  bool end = false, persist = false;
};
/// The trainer called finish(), and this rank has no unfinished step.
struct FinishRequested {};
/// The trainer has waited `times` deadlines for the outcome of its newest step, or for recover().
struct Waited {
  std::uint32_t times = 1;
};
/// Answer to CheckCopy, if the copy has come no further. `why` goes on from "rank R".
struct CopyStuck {
  ImageId id;
  std::string why;
};
/// This rank reads or writes images for a recovery, and no piece of them came or went for a
/// deadline. `why` goes on from "rank R".
struct ReadStuck {
  std::string why;
};
/// A death or silence that this rank saw itself or read in the Store. `kind` is kPeerLost or
/// kPeerSilent.
struct Broken {
  int rank = -1;
  ErrorKind kind = ErrorKind::kPeerLost;
  std::string why;
};
/// A message that came over a link of the message's generation.
struct Received {
  int from = 0;
  Message message;
};

using Event =
    std::variant<Formed, SlotsVerified, FilesVerified, Fetched, FetchFailed, StructureChecked,
                 StageRequested, StageSkipped, OwnSealed, OwnFailed, ReplicaReady, ReplicaSealed,
                 ReplicaFailed, StoreAnswered, Persisted, Wished, FinishRequested, Broken, Received,
                 Connected, Waited, CopyStuck, ReadStuck, OldPublished, OldFound>;

}  // namespace meshstage::protocol
