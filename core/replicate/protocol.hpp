#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/replicate/choose.hpp>
#include <meshstage/core/replicate/messages.hpp>
#include <meshstage/core/replicate/points.hpp>

/// The replication and recovery protocol of one rank as a pure function: transition(state, event)
/// changes the state and says what is to be done. No I/O, no clock, no threads, no randomness. The
/// same function runs in production (the agent feeds it and carries out its actions), in the tests
/// and in the explorer. PROTOCOL.md beside this file has the rules and the argument.
///
/// What the driver owes (the protocol's safety rests on it):
/// - one event at a time, and all actions of an event carried out in order before the next event;
///   a slot is WRITING in memory before the action that said so returns;
/// - Formed{g} is fed only when every write and transfer of the generation before has ended and its
///   receive targets can never be written again (rule 8), and before any message of g;
/// - every WriteOwn, AcceptReplica and Fetch ends with exactly one event that says how (…Sealed,
///   …Failed, Fetched, FetchFailed), after AbortRound and after AbortTransfers too, except that
///   after Broken the driver may end them silently;
/// - messages of one pair of ranks arrive in the order they were sent, or not at all;
/// - Sealed events mean: all bytes written, digests match, slot header SEALED, all stores fenced.
namespace meshstage::protocol {

/// Each protocol rule as a switch, for the explorer only: production leaves all of them on. With
/// any of them off, the explorer finds a run that loses or mixes a step (tests/replicate).
struct Rules {
  bool generations_apart = true;    ///< 1: messages and images of other generations stay out
  bool verify_claims = true;        ///< 5a: claim only what was verified just now
  bool stage_beside_base = true;    ///< 2: a new step goes to the slot that does not hold its base
  bool vote_needs_replicas = true;  ///< 2: yes only when the wards' replicas are sealed too
  bool vote_needs_common = true;  ///< 2: yes only when what completes others' replicas is the same
  bool promise = true;            ///< 3: nothing is staged before the outcome of the last is known
  bool receiver_knows_outcome =
      true;                       ///< 3: an offer is accepted on what it says of the round before
  bool all_must_vote = true;      ///< 4: one rank without a yes is enough to keep a step incomplete
  bool note_first = true;         ///< 5: the Store's note precedes the first complete
  bool newest_covered = true;     ///< 5b: the newest covered step, not the newest marked complete
  bool complete_claims = true;    ///< 5b: a replica counts only with what completes it
  bool restore_holders = true;    ///< 5c: redundancy is whole again at owner and holder
  bool fetch_beside_base = true;  ///< 5c: a fetch spares the chosen step's base
  bool agree_first = true;        ///< 5d: everyone is ready before anyone restores or stages
  bool structure_first = true;    ///< 5e: one mismatch stops all
  bool quarantine = true;         ///< 8: a broken generation's transfers write nowhere any more
  bool finish_together = true;    ///< 9: vaults are removed when everyone finishes
  bool prune_together = true;     ///< 10: files are pruned when everyone has the newer step
  friend bool operator==(const Rules&, const Rules&) = default;
};

/// Who the ranks are; never changes within a job. Made by make_config.
struct Config {
  int rank = 0;
  int world_size = 1;
  std::vector<std::vector<int>> holders;  ///< holders[r]: the ranks that hold r's replica
  /// completers[r]: the ranks whose own images may complete r's replicas; empty: nobody's.
  std::vector<std::vector<int>> completers;
  Rules rules;
  // Derived:
  std::vector<int> wards;     ///< the ranks whose replica this rank holds, ascending
  std::vector<int> relying;   ///< the ranks whose replicas this rank may complete, ascending
  int parent = -1;            ///< -1 at the root, rank 0
  std::vector<int> children;  ///< at most two
  /// All it talks to, ascending: tree neighbours, holders and wards, completers and relying.
  std::vector<int> peers;
};

/// r's holder is (r + W/2) mod W; nobody's where W = 1.
[[nodiscard]] MESHSTAGE_API std::vector<std::vector<int>> default_holders(int world_size);

/// Checks and derives. An empty `holders` means default_holders, empty `completers` nobody.
/// \throws InvalidArgument naming the rank: out of range, holder of itself, named twice.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<const Config> make_config(
    int rank, int world_size, std::vector<std::vector<int>> holders = {}, Rules rules = {},
    std::vector<std::vector<int>> completers = {});

/// One slot of the vault, as far as the protocol must know.
struct Slot {
  enum class State : std::uint8_t {
    kFree,     ///< empty, torn, or not verified: of no value
    kWriting,  ///< being written by this process
    kSealed,   ///< whole
  };
  State state = State::kFree;
  ImageId id{}, base{};
  friend bool operator==(const Slot&, const Slot&) = default;
};
using SlotPair = std::array<Slot, 2>;

enum class Mode : std::uint8_t {
  kUnformed,    ///< no generation yet
  kRecovering,  ///< from Formed until Established: nothing is staged
  kReady,       ///< stages
  kBroken,      ///< somebody died, or a recovery failed; waits for the next Formed
  kFinished,    ///< the vault is (being) removed
};

enum class Verdict : std::uint8_t {
  kOpen,      ///< not known; after Broken: not known until recover()
  kComplete,  ///< every rank voted yes; final
  kFailed,    ///< some rank voted no; final
};

/// What has become of one image that a round needs at this rank.
enum class Part : std::uint8_t { kNone, kWaiting, kWriting, kSealed, kFailed };

/// The replica of one ward in one round.
struct WardPart {
  Part part =
      Part::kNone;     ///< kWaiting: offered, but the slot is still being written by a failed round
  ImageSizes sizes{};  ///< as offered
  std::optional<Digest> image_digest;  ///< as announced by Sealed
  friend bool operator==(const WardPart&, const WardPart&) = default;
};

/// One step being agreed, from the first this rank hears of it. Kept until a later step is
/// complete, so that a latecomer's messages find it decided.
struct Round {
  ImageId id{};
  Verdict verdict = Verdict::kOpen;
  bool requested = false;       ///< this rank's trainer staged or skipped it
  Part own = Part::kNone;       ///< this rank's own image
  std::uint8_t below_yes = 0;   ///< bit i: child i and everything below it voted yes
  bool voted = false;           ///< this rank's own yes: the promise
  bool reported = false;        ///< the subtree's yes was sent up (root: the note is being written)
  std::vector<WardPart> wards;  ///< in the order of Config::wards
  std::vector<Digest> common;   ///< once sealed: what completes others' replicas (see OwnSealed)
  /// What they have in common with this rank, by their word, in the order of Config::relying.
  std::vector<std::optional<Common>> heard;
  friend bool operator==(const Round&, const Round&) = default;
};

/// Where a recovery stands.
struct Recovery {
  enum class Phase : std::uint8_t {
    kIdle,
    kSlots,    ///< verifying slots and gathering what those below have
    kFiles,    ///< the same for files (between: waiting to be asked)
    kChoice,   ///< waiting for the choice
    kFetch,    ///< fetching, serving, comparing structure
    kNoting,   ///< root only: all are ready, the Store's note is being written
    kWaiting,  ///< ready; waiting for Established
  };
  Phase phase = Phase::kIdle;
  bool mine = false;          ///< this rank's own part of the phase is done
  std::uint8_t below = 0;     ///< bit i: child i has sent its part of the phase
  std::vector<Claim> claims;  ///< root: all so far; others: of the phase, until sent up
  ImageId evidence{};         ///< newest step known to have been complete (see Have)
  std::string damage{};       ///< as the claims (see Have)
  Choice choice;
  int fetching = 0;   ///< own transfers not yet there
  int own_slot = -1;  ///< where the chosen image lies
  bool structure_ok = false;
  friend bool operator==(const Recovery&, const Recovery&) = default;
};

/// How far a file is agreed.
struct FileRound {
  ImageId id{};
  bool mine = false;
  std::uint8_t below = 0;
  friend bool operator==(const FileRound&, const FileRound&) = default;
};

/// Everything one rank's protocol knows. Copyable and comparable; all of it but the slots is lost
/// with the process, and the slots are read anew at each Formed.
struct State {
  std::shared_ptr<const Config> config;
  SlotPair own{};
  std::vector<SlotPair> held;  ///< in the order of Config::wards
  Mode mode = Mode::kUnformed;
  std::uint64_t generation = 0;
  ImageId base{};              ///< the newest complete step
  ImageId newest_requested{};  ///< the newest step this generation's trainer staged or skipped here
  bool noted = false;          ///< root: the Store has its note
  std::vector<Round> rounds;   ///< ascending ids; the open ones, and the failed ones above base
  Recovery recovery;
  std::vector<FileRound> files;  ///< ascending ids
  bool wants_finish = false;
  std::uint8_t finish_below = 0;
  friend bool operator==(const State&, const State&) = default;
};

/// A rank that has not formed a generation.
[[nodiscard]] MESHSTAGE_API State make_state(std::shared_ptr<const Config> config);

// ---------------------------------------------------------------------------------------------
// Events: what the driver tells.

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
};
struct OwnSealed {
  ImageId id;
  Digest image_digest{};
  /// What the replicas leave out, in the order of Config::completers of this rank. May be shorter:
  /// nothing is left out on account of the others.
  std::vector<Common> left_out{};
  /// The digests of what others' replicas may leave out, in the order of Config::relying. May be
  /// shorter: nothing of the others is known.
  std::vector<Digest> common{};
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
/// Answer to NoteFirstComplete: the Store has it.
struct NoteWritten {};
/// Own and (whole) held images of this step, verified just now, are published as files (and
/// synced).
struct Persisted {
  ImageId id;
};
/// The trainer called finish(); no stage is unfinished.
struct FinishRequested {};
/// A death or silence seen by this rank itself, or read in the Store. kPeerLost or kTimeout.
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

using Event =
    std::variant<Formed, SlotsVerified, FilesVerified, Fetched, FetchFailed, StructureChecked,
                 StageRequested, StageSkipped, OwnSealed, OwnFailed, ReplicaReady, ReplicaSealed,
                 ReplicaFailed, NoteWritten, Persisted, FinishRequested, Broken, Received>;

// ---------------------------------------------------------------------------------------------
// Actions: what the driver is to do, in this order.

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
/// rank; an own image that needs_others() also from the ServeCommon of all in
/// source.left_out. Mark the slot WRITING at once; answer Fetched or FetchFailed.
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
/// Complete the replica that rank `to` has been told to Fetch as its own image, from the own image
/// in `slot`. No answer if it works; FetchFailed if it cannot.
struct ServeCommon {
  ImageId id;
  int slot = 0;
  int to = 0;
};
/// What this rank's replicas leave out on account of `with` differs there: leave it in from now on.
struct StopSharing {
  int with = 0;
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
/// This step has failed: stop copying, sending and receiving it; started writes still answer.
struct AbortRound {
  ImageId id;
};
/// The generation is broken: abort all transfers, quarantine their targets (rule 8).
struct AbortTransfers {};
/// Write the note of the first complete step to the Store (compare-and-create); answer NoteWritten.
/// If the Store cannot be reached, feed Broken.
struct NoteFirstComplete {
  ImageId id;
};
/// The outcome of a step that this trainer staged or skipped. kOpen: the generation broke first.
struct Announce {
  ImageId id;
  Verdict verdict = Verdict::kOpen;
  int rank = -1;
  std::string why;
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

using Action = std::variant<Send, VerifySlots, VerifyDisk, Fetch, Serve, ServeCommon, StopSharing,
                            CheckStructure, RestoreTrainer, RecoveredNothing, RecoverFailed,
                            WriteOwn, AcceptReplica, ExpectDigest, SendImage, AbortRound,
                            AbortTransfers, NoteFirstComplete, Announce, NoteDeath, ReportLost,
                            Prune, RemoveVault, Refuse, Reached>;

/// Takes one event. Appends to `out` what is to be done, in order. Any event is safe in any state:
/// what does not fit is answered by Refuse and changes nothing. Time and memory are proportional
/// to what the event is about (a Have to its claims, others to the number of wards).
MESHSTAGE_API void transition(State& state, const Event& event, std::vector<Action>& out);

}  // namespace meshstage::protocol
