#pragma once
#include <cstdint>
#include <string>
#include <variant>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/protocol/choose.hpp>
#include <meshstage/core/protocol/messages.hpp>
#include <meshstage/core/protocol/points.hpp>
#include <meshstage/core/protocol/state.hpp>

/// Actions: what the driver is to do, in the order in which transition() gives them.
namespace meshstage::protocol {

struct Send {
  int to = 0;
  Message message;
};
/// Verify every sealed slot and answer SlotsVerified. `verify` is false only in the explorer.
struct VerifySlots {
  bool verify = true;
};
/// Verify every file newer than that (kNoImage: all) and answer FilesVerified.
struct VerifyDisk {
  ImageId newer_than;
};
/// Bring `source` into the slot `slot`: of own images if source.owner is this rank, else of those
/// held for source.owner. From another rank's Serve, or from the own disk if source.at is this
/// rank; an own image that needs_lenders() also from the ServeLent of all in
/// source.borrowed. Mark the slot WRITING at once; answer Fetched or FetchFailed.
struct Fetch {
  Claim source;
  int slot = 0;
};
/// Send the image `source` (which lies here) to rank `to`, which has been told to Fetch it. No
/// answer if it works; FetchFailed if it cannot.
struct Serve {
  Claim source;
  int to = 0;
};
/// Send rank `to`, which has been told to Fetch a replica as its own image, what that replica
/// borrows from this rank's own image in `slot`. No answer if it works; FetchFailed if it cannot.
struct ServeLent {
  ImageId id;
  int slot = 0;
  int to = 0;
};
/// What this rank's replicas borrow from `from` differs there: borrow nothing from it any more.
struct StopBorrowing {
  int from = 0;
  ImageId id;
};
/// Compare the sealed own slot with the trainer's state dict as soon as recover() brings one;
/// answer StructureChecked. Write nothing.
struct CheckStructure {
  int slot = 0;
};
/// All agreed: write the own slot's image into the trainer's tensors; recover() returns its step.
struct RestoreTrainer {
  int slot = 0;
  ImageId id;
};
/// All agreed that there is nothing: recover() returns step 0.
struct RecoveredNothing {};
/// recover() throws this; no trainer tensor was written at any rank. The generation is over.
/// Every peer was told the cause on its own link, so that it precedes that link's end-of-file.
struct RecoverFailed {
  Failure failure;
};
/// Stage into the own slot: WRITING at once, then copy; answer OwnSealed or OwnFailed.
struct WriteOwn {
  int slot = 0;
  ImageId id, base;
  ImageSizes sizes{};
};
/// Prepare the slot held for `ward`: WRITING at once, then room and receives; answer ReplicaReady,
/// later ReplicaSealed or ReplicaFailed (also without ReplicaReady).
struct AcceptReplica {
  int ward = 0;
  int slot = 0;
  ImageId id, base;
  ImageSizes sizes{};
};
/// The arriving replica must have this digest; it cannot be sealed before this is known.
struct ExpectDigest {
  int ward = 0;
  ImageId id;
  Digest image_digest{};
};
/// Stream the own image to this holder, following the watermark of staging.
struct SendImage {
  int holder = 0;
  ImageId id;
  bool need_manifest = true;
};
/// The pieces of that image come from rank `from` now: take them, into the slot they were asked for
/// or into none.
struct ReceiveStream {
  int from = 0;
  StreamStart start;
};
/// Rank `from` asks for these of the image that ServeLent names, before or after it.
struct TakeWant {
  int from = 0;
  Want want;
};
/// This step has failed: stop copying, sending and receiving it; started writes still answer.
struct AbortRound {
  ImageId id;
};
/// The generation is broken: abort all transfers, quarantine their targets (rule 8).
struct AbortTransfers {};
/// Ask the Store whether this generation is the newest that anybody claimed, by an operation that
/// its server carries out; if `note`, first write the note that a step was complete
/// (compare-and-create). Answer StoreAnswered. It comes after the last yes and before the decision:
/// what it finds is the decision (rule 12).
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
  Orders orders{};  ///< kComplete: whether it goes to disk now, whether the next one is the last
};
/// Write (generation, rank) to the Store (first one wins), before any link is closed.
struct NoteDeath {
  std::uint64_t generation = 0;
  int rank = -1;
  ErrorKind kind = ErrorKind::kPeerLost;
  std::string why;
};
/// Tell the trainer: every later call throws this until rejoin(). Follows each Broken.
struct ReportLost {
  int rank = -1;
  ErrorKind kind = ErrorKind::kPeerLost;
  std::string why;
};
/// Remove persisted files of this job's own and held images older than this.
struct Prune {
  ImageId older_than;
};
/// finish() was called everywhere: remove this rank's vault, return from finish().
struct RemoveVault {};
/// The event was not obeyed; nothing changed. The stage() or message it answers is wrong.
struct Refuse {
  enum class Reason : std::uint8_t {
    kBusy,       ///< StageRequested: the step before is unfinished here; wait or skip
    kNotReady,   ///< not between recover() and a death
    kNotAbove,   ///< StageRequested: the identity exists, or a newer one of this generation does
    kStale,      ///< an event for something that is over (harmless; not worth a log line)
    kMalformed,  ///< a message that a correct peer does not send; worth a warning
  };
  Reason reason = Reason::kStale;
  std::string why;
};
/// A named point was reached: just behind the action that made the change.
struct Reached {
  Point point = Point::kFormed;
  ImageId id{};
};

using Action = std::variant<Send, VerifySlots, VerifyDisk, Fetch, Serve, ServeLent, StopBorrowing,
                            CheckStructure, RestoreTrainer, RecoveredNothing, RecoverFailed,
                            WriteOwn, AcceptReplica, ExpectDigest, SendImage, AbortRound,
                            AbortTransfers, AskStore, Announce, NoteDeath, ReportLost, Prune,
                            RemoveVault, Refuse, Reached, ReceiveStream, TakeWant>;

}  // namespace meshstage::protocol
