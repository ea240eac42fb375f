#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/protocol/choose.hpp>
#include <meshstage/core/protocol/config.hpp>
#include <meshstage/core/protocol/messages.hpp>

/// The state of one rank's protocol. Plain, copyable and comparable values.
namespace meshstage::protocol {

/// One slot of the vault, as far as the protocol needs it.
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
  kBroken,      ///< a rank died, or a recovery failed; waits for the next Formed
  kFinished,    ///< the vault is (being) removed
};

enum class Verdict : std::uint8_t {
  kOpen,      ///< not known; after Broken: not known until recover()
  kComplete,  ///< every rank voted yes; final
  kFailed,    ///< some rank voted no; final
};

/// The state of one image that a round needs at this rank.
enum class Part : std::uint8_t { kNone, kWaiting, kWriting, kSealed, kFailed };

/// The replica of one ward in one round.
struct WardPart {
  Part part = Part::kNone;  ///< kWaiting: offered, but a failed round still writes the slot
  ImageSizes sizes{};       ///< as offered
  std::optional<Digest> image_digest;  ///< as announced by Sealed
  friend bool operator==(const WardPart&, const WardPart&) = default;
};

/// One step that ranks are agreeing on, from the first message or call about it. Kept until a later
/// step is complete, so that late messages about it find it decided.
struct Round {
  ImageId id{};
  Verdict verdict = Verdict::kOpen;
  bool requested = false;       ///< this rank's trainer staged or skipped it
  Part own = Part::kNone;       ///< this rank's own image
  std::uint8_t below_yes = 0;   ///< bit i: child i and everything below it voted yes
  bool voted = false;           ///< this rank's own yes: the promise
  bool reported = false;        ///< the subtree's yes was sent up (root: the Store is being asked)
  Wishes below;                 ///< of all ranks below this one that have voted
  bool asked_persist = false;   ///< this rank's own wish went with its vote
  std::vector<WardPart> wards;  ///< in the order of Config::wards
  std::vector<Digest> lent;  ///< once sealed: the digests of what this image lends (see OwnSealed)
  /// The Borrow of each borrower's replicas, in the order of Config::borrowers.
  std::vector<std::optional<Borrow>> borrows;
  std::uint32_t overdue = 0;  ///< the largest Overdue::times that this rank has passed on
  friend bool operator==(const Round&, const Round&) = default;
};

/// The progress of a recovery.
struct Recovery {
  enum class Phase : std::uint8_t {
    kIdle,
    kSlots,    ///< verifying slots and gathering the claims of ranks below
    kFiles,    ///< the same for files; before it the rank waits to be asked
    kChoice,   ///< waiting for the choice
    kPublish,  ///< making files of old images, and waiting for the ranks below
    kLook,     ///< root only: looking which step of an old job is on disk by now
    kFetch,    ///< fetching, serving, comparing structure
    kAsking,   ///< root only: all are ready, the Store is being asked
    kWaiting,  ///< ready; waiting for Established
  };
  Phase phase = Phase::kIdle;
  bool mine = false;             ///< this rank's own part of the phase is done
  std::uint8_t below = 0;        ///< bit i: child i has sent its part of the phase
  std::vector<Claim> claims;     ///< root: all; other ranks: the phase's, until sent up
  ImageId evidence{};            ///< newest step known to have been complete (see Have)
  std::string damage{};          ///< gathered like the claims (see Have)
  ImageId beyond{};              ///< gathered like the claims (see Have)
  ImageId newer_than{};          ///< root: AskDisk::newer_than
  ImageId up_to{};               ///< root: AskDisk::up_to of the newest AskDisk
  std::vector<OldStep> named{};  ///< root: FilesVerified::named
  OldStep old{};                 ///< root: the newest of them of which every file is proven
  bool looked = false;           ///< root: it has proven what nobody claimed
  OldStep left{};                ///< root: the newest step claimed of another number of ranks
  std::vector<Claim> others;     ///< root: the claims of another number of ranks
  std::uint64_t room = 0;        ///< root: FilesVerified::room
  /// Root: how often images of an old job were made files: own images, then replicas.
  int published = 0;
  OldStep proven{};            ///< root: of OldFound, what it proved of the disk alone
  OldStep publishing{};        ///< the step of the newest Publish
  std::vector<int> written{};  ///< gathered like the claims: Published::written
  /// Of this rank and all below: Published::failed; root: LeftBehind::why.
  std::string unpublished{};
  Choice choice;
  /// The ranks to connect to for the choice, ascending: no data peers of this rank.
  std::vector<int> bridges{};
  bool connecting = false;        ///< to `bridges`; until that is done the choice's transfers wait
  int fetching = 0;               ///< own transfers that have not arrived yet
  int own_slot = -1;              ///< the own slot that has the chosen image
  std::vector<int> lend_later{};  ///< the borrowers that are served once the own image is there
  bool structure_ok = false;
  /// With Config::any_world: a structure that differs, of this rank or one below; from Publish on
  /// the one that the root gives to all.
  std::optional<Failure> mismatch{};
  std::uint32_t overdue = 0;  ///< as Round::overdue
  friend bool operator==(const Recovery&, const Recovery&) = default;
};

/// How many ranks have a step on disk, as far as this rank knows.
struct FileRound {
  ImageId id{};
  bool mine = false;
  std::uint8_t below = 0;
  friend bool operator==(const FileRound&, const FileRound&) = default;
};

/// The whole state of one rank's protocol. Copyable and comparable. Everything but the slots is
/// lost with the process, and the slots are read anew at each Formed.
struct State {
  std::shared_ptr<const Config> config;
  SlotPair own{};
  std::vector<SlotPair> held;  ///< in the order of Config::wards
  Mode mode = Mode::kUnformed;
  std::uint64_t generation = 0;
  ImageId base{};              ///< the newest complete step
  Orders base_orders{};        ///< the base's orders
  Wishes wishes{};             ///< this rank's own wishes; they outlive a generation
  ImageId newest_requested{};  ///< the newest step that this rank's trainer staged or skipped in
                               ///< this generation
  bool noted = false;          ///< root: the Store has its note
  std::vector<Round> rounds;   ///< ascending ids: open rounds, and failed rounds above base
  Recovery recovery;
  std::vector<FileRound> files;  ///< ascending ids
  bool wants_finish = false;
  std::uint8_t finish_below = 0;
  friend bool operator==(const State&, const State&) = default;
};

/// The state of a rank that has not formed a generation.
[[nodiscard]] MESHSTAGE_API State make_state(std::shared_ptr<const Config> config);

}  // namespace meshstage::protocol
