#pragma once
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/protocol/choose.hpp>
#include <meshstage/core/protocol/messages.hpp>

/// Events: what the driver tells the protocol.
namespace meshstage::protocol {

/// A generation was formed, above every one before. Everything of the old one is forgotten.
struct Formed {
  std::uint64_t generation = 0;
};
/// Answer to VerifySlots: every sealed slot whose digests are right (own and held, of whomever).
/// \c evidence: the newest of the Store's note and of the bases in all headers, verified or not.
/// \c damage: which images were not, and why (see Have).
struct SlotsVerified {
  std::vector<Claim> claims;
  ImageId evidence{};
  std::string damage{};
};
/// Answer to VerifyDisk: every file newer than asked whose digests are right. \c evidence: the
/// newest id in any file's name, read or not. No directory: empty. \c damage: as of slots.
struct FilesVerified {
  std::vector<Claim> claims;
  ImageId evidence{};
  std::string damage{};
};
/// Answer to a Fetch: verified and sealed.
struct Fetched {
  int owner = 0;
};
/// Answer to a Fetch (or a Serve) that did not work though nobody is known to have died.
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
/// The trainer stages a step. Answered at once by WriteOwn, Announce(failed) or Refuse.
struct StageRequested {
  std::uint64_t step = 0;
  ImageSizes sizes{};
};
/// The trainer leaves this step out (the one before is not finished): a no vote.
struct StageSkipped {
  std::uint64_t step = 0;
  std::string why{};  ///< Empty: it was busy.
};
struct OwnSealed {
  ImageId id;
  Digest image_digest{};
  /// What the replicas borrow, in the order of Config::lenders of this rank. May be shorter:
  /// nothing is borrowed from the others.
  std::vector<Borrow> borrowed{};
  /// The digests of what this image lends, in the order of Config::borrowers. May be shorter:
  /// nothing is known of the others.
  std::vector<Digest> lent{};
};
struct OwnFailed {
  ImageId id;
  std::string why;
};
/// The slot asked for by AcceptReplica is WRITING and the receives can be posted.
struct ReplicaReady {
  int ward = 0;
  ImageId id;
  bool need_manifest = true;
};
/// Arrived whole, with the digest told by ExpectDigest.
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
    kNewest,      ///< And the Store has the note, if one was to be written.
    kSuperseded,  ///< A newer generation was claimed: this one decides nothing any more.
    kNothing,     ///< The Store did not answer in time; it may have the note.
  };
  ImageId id;
  Found found = Found::kNewest;
  std::string why{};  ///< Unless kNewest.
};
/// Own and (whole) held images of this step, verified just now, are published as files (and
/// synced).
struct Persisted {
  ImageId id;
};
/// What the trainer wishes for; goes with this rank's next vote. A wish is not taken back.
struct Wished {
  bool end = false, persist = false;
};
/// The trainer called finish(); no stage is unfinished.
struct FinishRequested {};
/// A death or silence seen by this rank itself, or read in the Store. kPeerLost or kPeerSilent.
struct Broken {
  int rank = -1;
  ErrorKind kind = ErrorKind::kPeerLost;
  std::string why;
};
/// A message from a link of the generation it names.
struct Received {
  int from = 0;
  Message message;
};

using Event = std::variant<Formed, SlotsVerified, FilesVerified, Fetched, FetchFailed,
                           StructureChecked, StageRequested, StageSkipped, OwnSealed, OwnFailed,
                           ReplicaReady, ReplicaSealed, ReplicaFailed, StoreAnswered, Persisted,
                           Wished, FinishRequested, Broken, Received>;

}  // namespace meshstage::protocol
