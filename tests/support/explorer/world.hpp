#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <meshstage/core/protocol/transition.hpp>

/// A small world of ranks for the explorer and the tests: vaults, files, a Store's note, messages
/// in flight and the real transition() of each rank. Everything that may happen is a Choice;
/// applying the same choices gives the same world. What must never be is checked at every step.
namespace meshstage::explorer {

using namespace meshstage::protocol;  // NOLINT: this is the protocol's test bed

/// How large a world, and how much may go wrong in it.
struct Bounds {
  int world = 2;
  int steps = 2;          ///< trainers stage steps 1 .. steps
  int crashes = 0;        ///< a process ends; its vault stays, WRITING slots torn
  int host_losses = 0;    ///< a process ends and its memory is gone; not before redundancy is whole
  int losses_beyond = 0;  ///< host losses at any time, more than is promised to survive
  int lost_messages = 0;  ///< a message, and all behind it on its link, never arrives
  int timeouts = 0;       ///< a rank gives its generation up though nobody died
  int local_failures = 0;    ///< an own image, replica or fetch fails
  int skips = 0;             ///< a trainer leaves a step out because the last one is unfinished
  int early_ends = 0;        ///< a trainer calls finish() before it has staged all steps
  int mismatches = 0;        ///< a trainer comes back with another structure
  bool any_cut = false;      ///< ... which is another cut, so the step is assembled
  int flips = 0;             ///< a sealed image changes by itself
  int zombies = 0;           ///< a process is stopped, replaced, and goes on
  int unanswered = 0;        ///< the Store does not answer the root
  int differences = 0;       ///< an image has other bytes in what it borrows or lends
  int claims = 0;            ///< so many fit into a message; 0: all
  int ends = 0;              ///< a trainer wishes the job to end
  int reseats = 0;           ///< all processes end; the job comes back with ranks on other hosts
  int hangs = 0;             ///< a trainer calls nothing any more, until the next generation
  int waits = 0;             ///< a trainer has waited a deadline though others are still busy
  int slow_disks = 0;        ///< a rank's disk takes its time, for one reading
  int stuck_disks = 0;       ///< a rank's disk gives nothing any more, until the next generation
  int seats = 1;             ///< ranks on each host; a host is lost with all of them
  bool disk = false;         ///< ranks may persist complete steps
  bool local_disks = false;  ///< each host has a disk of its own; else all ranks share one
  /// The root's disk has a step of a job of another number of ranks, older than any step of these.
  bool old_job = false;
  /// With old_job: the last rank could not tell that it shares that disk, and claims no old file.
  bool old_unclaimed = false;
  /// With old_job: a newer step of that job lies in memory, one copy of each image at its owner and
  /// one on another host. The owner without a rank in this job has left a vault on rank 0's host.
  bool old_memory = false;
  /// With old_memory: all of that step are files, too, but that of owner 0 is damaged.
  bool old_rot = false;
  /// With old_memory: each rank's host has a disk of its own, lost with the host, and nothing of
  /// the old job is on one yet.
  bool old_apart = false;
  /// The job writes no files. With old_apart: the old job's images stay where they lie in memory,
  /// beside the slots of this one. With any_cut: each rank's image is read from its own slot.
  bool old_kept = false;
  /// A fetch finds no room: the slots of strays go that need not stay.
  bool scarce = false;
  bool finish = false;  ///< trainers call finish() after the last step
  Rules rules{};
  std::vector<std::vector<int>> holders;  ///< empty: the default
  /// lenders[r]: the ranks from which the replicas of r borrow; empty: replicas are whole.
  std::vector<std::vector<int>> lenders;
};

/// One thing that happens. What a, b and c mean depends on the kind.
struct Choice {
  enum class Kind : std::uint8_t {
    kForm,           ///< all meet: a new generation
    kFormed,         ///< a hears of it
    kDeliver,        ///< the oldest message from a to b of generation c
    kStage,          ///< a's trainer stages its next step
    kSkip,           ///< a's trainer skips its next step
    kOwnSealed,      ///< a's image is sealed
    kReplicaSealed,  ///< a sealed the replica of b (of generation c, where quarantine is off)
    kFetched,        ///< a sealed the image of b
    kAnswered,       ///< the Store answers a
    kConnected,      ///< a is connected to all that the choice wants
    kCompared,       ///< a's structure is the image's
    kRead,           ///< a's slow disk has given what a reads
    kReadStuck,      ///< a has read nothing for a deadline
    kPersist,        ///< a wrote its newest complete step to disk
    kWish,           ///< a's trainer wishes the job to end
    kFinish,         ///< a's trainer calls finish()
    kWaited,         ///< a's trainer has waited a deadline for an outcome, or for recover(): b is 1
                     ///< where nothing else can happen
    kBroken,         ///< a notices that its generation is broken
    // What goes wrong:
    kOwnDiffers,  ///< as kOwnSealed, with other bytes in what it borrows or lends
    kUnanswered,  ///< the Store does not answer a
    kOwnFailed,
    kReplicaFailed,
    kFetchFailed,
    kMismatch,
    kLost,  ///< the oldest message from a to b of generation c, with all that follows it
    kTimeout,
    kSlowDisk,
    kStuckDisk,
    kHang,  ///< a's trainer calls nothing any more; its process lives
    kCrash,
    kHostLost,
    kFlip,    ///< at a, slot b (0, 1: own; then the held ones)
    kZombie,  ///< a is stopped, taken for dead and replaced by a new incarnation with an empty
              ///< vault
    kReseat,  ///< all processes end and come back, each rank a hosts further on; vaults stay
    kSwap,    ///< the same, but only a and the next rank change their hosts
  };
  Kind kind = Kind::kForm;
  int a = 0, b = 0;
  std::uint64_t c = 0;
  friend bool operator==(const Choice&, const Choice&) = default;
};

[[nodiscard]] bool is_fault(const Choice& choice);
/// In words; no two choices of one world have the same.
[[nodiscard]] std::string to_string(const Choice& choice);

/// A set of ranks: bit r is rank r.
using Ranks = std::uint64_t;
inline Ranks bit(int rank) { return Ranks{1} << static_cast<unsigned>(rank); }

/// A slot as it lies in memory: what the header says, and what the bytes are.
struct MemorySlot {
  enum class Header : std::uint8_t { kEmpty, kWriting, kSealed };
  Header header = Header::kEmpty;
  ImageId id{}, base{};
  bool whole = false;  ///< the bytes are the image `id` of `owner`
  ImageId content{};   ///< whose bytes they are, if whole
  int content_owner = -1;
  Ranks lenders = 0;  ///< from whose own images replicas of this image borrow
  int loan = 0;       ///< the bytes borrowed and lent: equal numbers, equal bytes
  bool old = false;   ///< of the old job
};
using MemorySlots = std::array<MemorySlot, 2>;

struct File {
  int owner = 0;
  ImageId id{}, base{};
  Ranks lenders = 0;
  int loan = 0;
  friend auto operator<=>(const File&, const File&) = default;
};

/// Something a rank's driver has been told to do and has not reported yet.
struct Job {
  enum class Kind : std::uint8_t { kOwn, kReplica, kFetch, kAsk, kCompare, kConnect, kRead };
  Kind kind = Kind::kOwn;
  std::uint64_t generation = 0;
  int owner = 0;  ///< whose image
  /// read: 0 for slots, 1 for what is newer than `id` elsewhere; also in slots, and not newer than
  /// `base`, if there is one
  int slot = 0;
  ImageId id{}, base{};
  bool digest_known = false;  ///< replica
  bool sending = false;       ///< replica: the owner streams it; fetch: the source serves it
  bool aborted = false;
  Ranks lenders = 0;   ///< as the image's
  int loan = 0;        ///< replica, fetch: as the image's, once known
  Ranks lent = 0;      ///< fetch: the lenders that serve it
  Claim source{};      ///< fetch
  bool moves = false;  ///< fetch: the stray's slot becomes the rank's own
};

/// The vault of a rank that sits on another host now.
struct Stray {
  int host = 0;
  int rank = 0;
  MemorySlots own{};
  std::vector<MemorySlots> held;
  std::uint64_t taken = 0;  ///< the generation in which a rank on the host took it last
  int by = -1;
};

/// What a rank that sits on another host now has left on a host's own disk.
struct LeftFiles {
  int host = 0;
  int writer = 0;
  std::vector<File> files;  ///< sorted
};

/// One process of a rank, and its vault.
struct Node {
  int rank = 0;
  int host = 0;
  bool alive = true;
  bool zombie = false;
  bool pending = false;  ///< a generation was formed that it has not borrow of
  State state;
  std::vector<Job> jobs;
  MemorySlots own{};
  std::vector<MemorySlots> held;
  std::vector<File> files;  ///< sorted
  int next_step = 1;
  bool hung = false;  ///< its trainer calls nothing any more
  enum class Disk : std::uint8_t { kFast, kSlow, kStuck } disk = Disk::kFast;
  std::uint32_t waited = 0;  ///< deadlines, for the same outcome
  Ranks old_held = 0;        ///< whose images of the old job lie in slots that no rank here writes
  Ranks old_files = 0;       ///< with old_apart: whose images of that step this host's disk has
  Ranks unborrowed = 0;      ///< from whom replicas borrow nothing any more
  bool gave_up = false;      ///< by GiveUp, which precedes the end-of-file on each of its links
  std::optional<Failure> failure;  ///< of its newest recovery; no part of the world's identity
};

/// A message in flight; shared, because worlds are copied all the time.
struct Letter {
  int from = 0, to = 0;
  Message message;
  std::string bytes;  ///< canonical, for hashing
};

/// What came to a rank's driver before the driver knew what it is for.
struct Early {
  enum class What : std::uint8_t {
    kImage,  ///< a stream of an image, before the Fetch that it is for
    kServe,  ///< a ServeLent, before the Want
    kWant,   ///< a Want, before the ServeLent
  };
  int from = 0, to = 0, owner = 0;
  std::uint64_t generation = 0;
  ImageId id{};
  What what = What::kImage;
  friend auto operator<=>(const Early&, const Early&) = default;
};

/// A direction of a link on which a message was lost: nothing arrives any more.
struct DeadLink {
  int from = 0, to = 0;
  std::uint64_t generation = 0;
  friend auto operator<=>(const DeadLink&, const DeadLink&) = default;
};

class World {
 public:
  explicit World(std::shared_ptr<const Bounds> bounds);

  /// Everything that can happen now, in a fixed order.
  [[nodiscard]] std::vector<Choice> choices() const;
  /// Makes it happen. False (and nothing changes) if it cannot happen now.
  bool apply(const Choice& choice);
  /// The same for one of choices(), unchecked.
  void step(const Choice& choice);
  /// What is wrong, in one sentence; empty while all is well. Set by apply().
  [[nodiscard]] const std::string& violation() const { return violation_; }
  /// For worlds where nothing but faults can happen: what is wrong with having come to rest here.
  [[nodiscard]] std::string stuck() const;
  /// Nothing of interest can follow.
  [[nodiscard]] bool over() const { return finished_; }

  /// A canonical serialization: equal worlds have equal bytes.
  [[nodiscard]] std::string bytes() const;

  // --- for tests that steer a world ---
  /// What the last apply() did, one line for each action worth reading.
  [[nodiscard]] const std::vector<std::string>& log() const { return log_; }
  void keep_log(bool on) { keep_log_ = on; }
  /// Process `rank` ends at once when it reaches this point for the n-th time (1: the next).
  void crash_at(int rank, Point point, int times = 1) { crash_ = {rank, point, times}; }
  [[nodiscard]] bool crash_pending() const { return crash_.times > 0; }
  [[nodiscard]] const Node& node(int rank) const { return nodes_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] ImageId agreed() const { return agreed_; }
  [[nodiscard]] std::uint64_t generation() const { return store_generation_; }
  [[nodiscard]] const std::map<int, ImageId>& restored() const { return restored_; }
  [[nodiscard]] bool reached(Point point) const {
    return (points_ >> static_cast<unsigned>(point) & 1U) != 0;
  }

 private:
  using Kind = Choice::Kind;
  struct Budget {
    int crashes, host_losses, losses_beyond, lost_messages, timeouts, local_failures, skips,
        mismatches, flips, zombies, differences, early_ends, ends, unanswered, reseats, hangs,
        waits, slow_disks, stuck_disks;
  };
  struct CarryOut;
  struct CrashAt {
    int rank = -1;
    Point point{};
    int times = 0;
  };

  void feed(Node& node, const Event& event);
  /// What this rank finds in its slots, or elsewhere, and claims.
  [[nodiscard]] Event read(const Node& node, const Job& job);
  /// Whether the claims to each step fit each message, if they are all that it has.
  [[nodiscard]] bool steps_fit_messages() const;
  /// As a driver or an action sends; lost if the link is, or nobody would hear it.
  void send(const Node& node, int to, const Message& message);
  void keep_early(const Early& early);
  /// True, once, if it came early.
  bool take_early(const Early& early);
  bool carry_out(Node& node, const Action& action);
  /// Begins to write a slot; wrong if something of this generation still writes it.
  void begin_slot(Node& node, const Job& job);
  void seal_slot(MemorySlot& slot, const Job& job, int loan);
  void end_process(Node& node, bool lose_memory);
  void lose_host(int host);
  /// All processes end, and rank r comes back on hosts[r].
  void reseat(const std::vector<int>& hosts);
  /// What this rank takes of the strays on its host, and claims.
  void take_strays(const Node& node, ImageId newer_than, bool verify, FilesVerified& found);
  void remove_strays(const Node& node);
  /// The rank that reads, and in the end removes, what that rank has left on this host's disk.
  [[nodiscard]] int reader_of(int rank, int host) const;
  /// The claims to images of the old job: in memory that no rank here writes, and in files.
  void claim_old(const Node& node, ImageId newer_than, FilesVerified& found) const;
  void begin_old();
  /// The steps of the old job of which the root's disk names every file.
  [[nodiscard]] std::vector<OldStep> old_named() const;
  OldPublished publish_old(Node& node, const PublishOld& action);
  /// The own image of that step becomes a file, or stays in its slot (Bounds::old_kept).
  OldPublished publish_own(Node& node, ImageId id) const;
  /// Whether some rank's image of that step is no file; with Bounds::old_kept, whether this rank's
  /// own slots do not have it.
  [[nodiscard]] bool lacks_image(const Node& node, ImageId id) const;
  /// This rank's trainer has that step now.
  void check_mixed(const Node& node, ImageId content);
  /// The old job's newest step of which the disks have every image.
  [[nodiscard]] OldStep old_on_disk() const;
  /// Whose images of the old job's step in memory are files on a disk that `node` reaches.
  [[nodiscard]] Ranks old_files_of(const Node& node) const;
  /// The newest step for whose images `files` suffice.
  [[nodiscard]] OldStep old_step_of(Ranks files) const;
  /// Whether there is a copy of every image of the old job's step in memory, but for that of the
  /// host `without`.
  [[nodiscard]] bool old_covered(int without) const;
  /// What old images go where this rank writes a slot of its own, or a ward's: with the rules none.
  void overwrite_old(Node& node, bool own) const;
  /// The copies in that node's old_held which its owner made.
  [[nodiscard]] Ranks old_own(const Node& node) const;
  /// What this rank finds on its disk, and claims. `all`: of whatever ranks.
  void verify_files(const Node& node, ImageId newer_than, bool all, FilesVerified& found) const;
  void clear_messages_to(const Node& node);
  bool end_job(const Choice& choice);
  void note_point(const Node& node, const Reached& reached);
  void check_newest(const Node& node);
  void say(const Node& node, const std::string& text);
  void wrong(const std::string& what);
  void check();
  void check_old();
  void lose();

  [[nodiscard]] Node* live_node(int rank, std::uint64_t generation);
  [[nodiscard]] bool can_finish(const Node& node, const Job& job) const;
  /// What was to be sent for this fetch is not there any more, or not what it should be.
  [[nodiscard]] bool fetch_broken(const Node& node, const Job& job) const;
  [[nodiscard]] const MemorySlot* source_of(const Job& job) const;
  /// The slot of a claim to a stray vault; nullptr if that vault is gone.
  [[nodiscard]] MemorySlot* stray_slot(const Claim& claim);
  /// The slots of the strays that this rank took go, but those with these images.
  void give_up_strays(const Node& node, ImageId chosen, ImageId spare);
  /// What own image of that id that rank has in memory, whole; nullptr if none.
  [[nodiscard]] const MemorySlot* own_image(int rank, ImageId id) const;
  /// The same in any vault, but for those on the host `without`.
  [[nodiscard]] const MemorySlot* any_image(int rank, ImageId id, int without) const;
  /// Whether each rank has a holder, and all its lenders, on other hosts. The loss of one host is
  /// survived only then.
  [[nodiscard]] bool spread() const;
  /// Whether all that a replica borrows is there, but for the memory of the host `without`.
  [[nodiscard]] bool has_lenders(const MemorySlot& replica, int without) const;
  /// Whose own images complete this rank's next image's replicas.
  [[nodiscard]] Ranks borrowed_by(const Node& node) const;
  /// Whether something from or to this rank was lost in its generation, which it may notice.
  [[nodiscard]] bool link_dead(const Node& node) const;
  [[nodiscard]] bool someone_gone(const Node& node) const;
  [[nodiscard]] bool may_form() const;
  /// Whether this rank's trainer waits for an outcome, or in recover().
  [[nodiscard]] static bool waits(const Node& node);
  /// Whether this rank's trainer has still to compare structures in recover().
  [[nodiscard]] static bool compares(const Node& node);
  [[nodiscard]] bool would_accept(const Node& node, const Event& event) const;
  void add_loans(Claim& claim) const;
  [[nodiscard]] std::vector<Claim> slot_claims(const Node& node, bool verify) const;
  [[nodiscard]] Claim claim_of(const Node& node, const MemorySlot& slot, int owner, Place place,
                               int index) const;
  [[nodiscard]] int host_count() const {
    return (bounds_->world + bounds_->seats - 1) / bounds_->seats;
  }
  /// Whether each rank that this one is to connect to has learned of it, too.
  [[nodiscard]] bool can_connect(const Node& node) const;
  [[nodiscard]] ImageId evidence(const Node& node) const;
  /// The newest image id with a whole copy of every rank, in memory (but that of the host
  /// `without`) or, if asked, on disk.
  [[nodiscard]] ImageId newest_covered(int without, bool memory, bool disk) const;
  [[nodiscard]] static std::size_t ward_of(const Node& node, int ward);
  [[nodiscard]] static MemorySlots& held_by(Node& node, int ward) {
    return node.held[ward_of(node, ward)];
  }
  [[nodiscard]] std::size_t slot_count(const Node& node) const { return 2 + 2 * node.held.size(); }
  [[nodiscard]] static const MemorySlot& slot_at(const Node& node, int index);
  void processes_choices(const Node& node, std::vector<Choice>& out) const;
  void fault_choices(const Node& node, std::vector<Choice>& out) const;

  std::shared_ptr<const Bounds> bounds_;
  Budget left_{};
  std::vector<Node> nodes_;                             ///< one for each rank, then zombies
  std::vector<Stray> strays_;                           ///< by host and rank
  Ranks old_files_ = 0;                                 ///< of the old job's step in memory
  Ranks old_damaged_ = 0;                               ///< the same, and nobody can read them
  std::vector<LeftFiles> left_files_;                   ///< by host and writer
  std::vector<std::shared_ptr<const Letter>> letters_;  ///< in the order of sending
  std::vector<Early> early_;                            ///< sorted
  std::vector<DeadLink> dead_links_;                    ///< sorted
  std::uint64_t store_generation_ = 0;
  ImageId note_{};
  // What the checks remember:
  ImageId agreed_{};  ///< the newest step that anybody can know to be complete
  bool ever_agreed_ = false;
  bool degraded_ = false;             ///< a copy was lost since redundancy was last whole
  bool beyond_ = false;               ///< more was lost than is promised to survive
  std::uint64_t lost_in_ = 0;         ///< the generation in which the last copy was lost
  std::uint64_t wants_finish_ = 0;    ///< bit r: rank r called finish() in this generation
  ImageId on_disk_{};                 ///< the newest step ever covered by files
  std::map<ImageId, bool> verdicts_;  ///< true: complete
  std::map<ImageId, bool> last_;      ///< of the steps staged: true if as the last one
  std::map<int, ImageId> restored_;   ///< of the newest generation
  std::uint64_t restored_generation_ = 0;
  std::uint64_t mismatch_generation_ = 0;
  bool finished_ = false;
  std::string violation_;
  // For steered tests; no part of the world's identity:
  CrashAt crash_;
  std::uint64_t points_ = 0;
  bool keep_log_ = false;
  std::vector<std::string> log_;
};

/// Canonical bytes of parts (canonical.cpp).
void put(std::string& out, const State& state);
void put(std::string& out, const Message& message);
void put(std::string& out, const Job& job);
void put(std::string& out, const MemorySlot& slot);
void put_number(std::string& out, std::uint64_t value);
void put_id(std::string& out, ImageId id);

}  // namespace meshstage::explorer
