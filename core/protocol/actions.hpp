#pragma once
#include <cstdint>
#include <string>
#include <variant>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/points/points.hpp>
#include <meshstage/core/protocol/choose.hpp>
#include <meshstage/core/protocol/messages.hpp>
#include <meshstage/core/protocol/state.hpp>

/// Actions: the tasks of the driver, in the order in which transition() gives them. In production
/// the driver is core/replicate's Driver.
namespace meshstage::protocol {

struct Send {
  int to = 0;
  Message message;
};
/// Verify every sealed slot and answer with SlotsVerified. `verify` is false only in the explorer.
struct VerifySlots {
  bool verify = true;
};
/// Verify every file whose image is newer than `newer_than` (kNoImage: all), and every image that
/// is not older in the stray vaults on this host that no other rank of this generation has taken.
/// Answer with FilesVerified. `strays` is false only in the explorer.
struct VerifyDisk {
  ImageId newer_than;
  bool strays = true;
  /// If the id exists: verify nothing. Answer with the claims of this recovery, those to slots too,
  /// that are newer than `newer_than` and not newer than this.
  ImageId up_to{};
};
/// Write images of this step, of another number of ranks or of another cut, to files, named as a
/// rank of the job that staged it would have named them. If the number is the present one, only
/// this rank's own image in its own slot, which stays there if the job writes no files. The images
/// are those in this rank's vault and in the stray vaults that it took: owners' own images, or, if
/// `replicas`, the replica of each owner that has no sound file, made whole from its lenders'
/// files. Prove each byte before writing it. Answer with OldPublished, also if something failed.
struct PublishOld {
  OldStep step;
  bool replicas = false;
};
/// Root only: look once more which steps of another number of ranks the disk has. `prove`: prove
/// the files of the newest as well, alone, because not all of them were claimed. Answer with
/// OldFound.
struct FindOld {
  bool prove = false;
};
/// Connect to these ranks, which do the same, for the choice's transfers between them. Answer with
/// Connected, or with Broken if that fails or takes longer than the deadline.
struct Connect {
  std::vector<int> peers;
};
/// All that was sent between the pairs of Connect has arrived: close their connections.
struct Disconnect {};
/// Bring `source` into slot `slot`: an own slot if source.owner is this rank, else a slot of ward
/// source.owner. The bytes come from another rank's Serve, or from this rank's disk or a stray
/// vault if source.at is this rank. For an own image that needs_lenders() more bytes come from the
/// ServeLent of each rank in source.borrowed. The slot is WRITING before any of its bytes changes.
/// If there is no room, slots of the stray vaults that this rank took may be given up, but none
/// that has source.id or `spare`. Answer with Fetched or FetchFailed.
struct Fetch {
  Claim source;
  int slot = 0;
  ImageId spare{};    ///< the chosen step's base
  bool move = false;  ///< the stray vault's slot may become this one, without a copy
};
/// Send the image `source`, which this rank has, to rank `to`, whose protocol gave a Fetch for it.
/// No answer on success, else FetchFailed.
struct Serve {
  Claim source;
  int to = 0;
};
/// Send rank `to`, which fetches a replica as its own image, the bytes that the replica borrows
/// from this rank's own image in `slot`. No answer on success, else FetchFailed.
struct ServeLent {
  ImageId id;
  int slot = 0;
  int to = 0;
};
/// Lender `from` has other bytes than this rank's replicas borrow from it: borrow nothing from
/// `from` any more.
struct StopBorrowing {
  int from = 0;
  ImageId id;
};
/// Compare the sealed own slot with the trainer's state dict as soon as recover() brings one;
/// answer with StructureChecked. Write nothing.
struct CheckStructure {
  int slot = 0;
};
/// All agreed: write the own slot's image into the trainer's tensors; recover() returns its step.
/// Slots of older incarnations and stray vaults are superseded: remove them now, never before.
struct RestoreTrainer {
  int slot = 0;
  ImageId id;
};
/// All agreed that this number of ranks has nothing to recover: recover() begins with step 0, or
/// with the step of a job of another number of ranks. Remove superseded slots and strays as for
/// RestoreTrainer.
struct RecoveredNothing {
  OldStep old{};  ///< at the root only; kNoImage: step 0
};
/// All agreed on this step, and on each rank's own image in a file, or in its own slot; the step
/// counts as complete. But the trainers cut their states otherwise than its images: recover()
/// assembles each state from these, and stages it as the first step of the new cut. If the states
/// cannot be assembled, recover() throws `mismatch` at every rank.
struct Reassemble {
  OldStep step;
  Failure mismatch;
};
/// Root only: a job of another number of ranks left a newer step than the one that is taken.
struct LeftBehind {
  OldStep step;
  ImageId taken;    ///< the step that the job goes on from
  std::string why;  ///< why that step is not taken
};
/// recover() throws this; no trainer tensor was written at any rank. The generation is over.
/// Each peer gets the cause on its own link, so that the cause comes before that link's
/// end-of-file.
struct RecoverFailed {
  Failure failure;
};
/// Stage into the own slot: mark it WRITING, then copy. Answer with OwnSealed or OwnFailed.
struct WriteOwn {
  int slot = 0;
  ImageId id, base;
  ImageSizes sizes{};
};
/// Prepare the slot of `ward`: mark it WRITING and make room. Answer with ReplicaReady, later with
/// ReplicaSealed or ReplicaFailed (also without ReplicaReady).
struct AcceptReplica {
  int ward = 0;
  int slot = 0;
  ImageId id, base;
  ImageSizes sizes{};
};
/// The arriving replica must have this digest; seal no replica before its digest is known.
struct ExpectDigest {
  int ward = 0;
  ImageId id;
  Digest image_digest{};
};
/// Stream the own image to `holder`, as far as staging's watermark allows.
struct SendImage {
  int holder = 0;
  ImageId id;
  bool need_manifest = true;
  std::vector<Digest> held{};  ///< as Accept's: these blocks need not be sent
};
/// The pieces of that image now come from rank `from`. Take them into the slot that asked for them,
/// or drop them if none did.
struct ReceiveStream {
  int from = 0;
  StreamStart start;
};
/// Rank `from` asks for these storages of the image that ServeLent names. This action may come
/// before or after ServeLent.
struct TakeWant {
  int from = 0;
  Want want;
};
/// This step has failed: give up replicas of it whose pieces have not begun to come. What has begun
/// goes on to its end, and answers.
struct AbortRound {
  ImageId id;
};
/// A trainer waits for this step, whose own image is being written. Answer with CopyStuck if
/// nothing of the image has been copied for a deadline; else not at all.
struct CheckCopy {
  ImageId id;
};
/// The generation is broken: abort all transfers and let none of them write its target any more
/// (rule 8).
struct AbortTransfers {};
/// Ask the Store whether this generation is the newest that any process claimed, by an operation
/// that the Store's server carries out. If `note`, first write the note that a step was complete
/// (compare-and-create). Answer with StoreAnswered. The question comes after the last yes and
/// before the decision, and the answer is the decision (rule 12).
struct AskStore {
  ImageId id;
  bool note = false;
};
/// The outcome of a step that this trainer staged or skipped. kOpen: the generation broke first.
struct Announce {
  ImageId id;
  Verdict verdict = Verdict::kOpen;
  int rank = -1;
  std::string why;
  Orders orders{};  ///< kComplete: whether the step goes to disk, and whether the next step is the
                    ///< last
};
/// Write (generation, rank) to the Store before any link is closed; the first rank that writes
/// wins.
struct NoteDeath {
  std::uint64_t generation = 0;
  int rank = -1;
  ErrorKind kind = ErrorKind::kPeerLost;
  std::string why;
};
/// Let every later call of the trainer throw this loss until rejoin(). Follows each Broken.
struct ReportLost {
  int rank = -1;
  ErrorKind kind = ErrorKind::kPeerLost;
  std::string why;
};
/// Remove this rank's files (own images and wards' replicas) that are older than this.
struct Prune {
  ImageId older_than;
};
/// Every rank called finish(): remove this rank's vault, return from finish().
struct RemoveVault {};
/// The protocol refused the event and changed nothing: the stage() or the message is wrong.
struct Refuse {
  enum class Reason : std::uint8_t {
    kBusy,       ///< StageRequested: this rank has not finished the step before; wait or skip
    kNotReady,   ///< not between recover() and a death
    kNotAbove,   ///< StageRequested: this step, or a newer step of this generation, exists already
    kStale,      ///< an event of a round or recovery that is over (harmless; not worth a log line)
    kMalformed,  ///< a message that no correct peer sends; worth a warning
  };
  Reason reason = Reason::kStale;
  std::string why;
};
/// A named point was reached. It stands right behind the action that makes the change.
struct Reached {
  Point point = Point::kFormed;
  ImageId id{};
};

using Action = std::variant<Send, VerifySlots, VerifyDisk, Fetch, Serve, ServeLent, StopBorrowing,
                            CheckStructure, RestoreTrainer, RecoveredNothing, Reassemble,
                            LeftBehind, RecoverFailed, WriteOwn, AcceptReplica, ExpectDigest,
                            SendImage, AbortRound, AbortTransfers, AskStore, Announce, NoteDeath,
                            ReportLost, Prune, RemoveVault, Refuse, Reached, ReceiveStream,
                            TakeWant, Connect, Disconnect, CheckCopy, PublishOld, FindOld>;

}  // namespace meshstage::protocol
