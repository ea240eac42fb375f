#pragma once
#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/protocol/codec.hpp>
#include <meshstage/core/protocol/transition.hpp>
#include <meshstage/core/replicate/agent.hpp>
#include <meshstage/core/replicate/exchange.hpp>
#include <meshstage/core/replicate/persistence.hpp>
#include <meshstage/core/stage/source_digests.hpp>
#include <meshstage/core/stage/staging_plan.hpp>
#include <meshstage/core/stage/watermark.hpp>
#include <meshstage/core/transfer/image.hpp>
#include <meshstage/core/transfer/ranges.hpp>
#include <meshstage/core/vault/vault.hpp>

namespace meshstage {

/// The trainer's pace (null: none), as long as the generation lasts. Who leaves it waits for no
/// one: what is still to be copied goes at full speed.
class PaceOfGeneration final : public Pace {
 public:
  explicit PaceOfGeneration(Pace* pace) : pace_(pace) {}
  void before(std::uint64_t bytes, Watermark&) override {
    if (pace_ != nullptr && !left_.failed()) pace_->before(bytes, left_);
  }
  void enter() noexcept { left_.reset(); }
  void leave() noexcept {
    left_.fail(std::make_exception_ptr(Cancelled("the generation was left")));
  }

 private:
  Pace* pace_;
  Watermark left_;
};

/// One step on its way from the trainer to the holders. The trainer's thread makes it, the agent's
/// thread fills in the slot, the copying thread writes the image, the sending threads read it.
struct StageJob {
  std::uint64_t step = 0;
  std::shared_ptr<const StagingPlan> plan;
  StagingSource source;  ///< Scalars as they were at stage(), and the sources kept alive.
  std::optional<detail::SourceDigests> digests;  ///< Of the source at stage(), if asked for.
  protocol::ImageSizes sizes;
  std::chrono::steady_clock::time_point requested = std::chrono::steady_clock::now();
  Promise<void> accepted;  ///< The protocol took the request, or refused it.
  Promise<void> staged;
  Promise<Outcome> outcome;
  // From WriteOwn on:
  ImageId id;
  int slot = -1;
  WriteLease lease;
  std::span<std::byte> image;
  Watermark watermark;
  // The agent's thread only:
  bool decided = false;  ///< The outcome is known (or the generation broke).
  bool written = false;  ///< Nothing of the copying is left to come.
};

/// An image that this rank receives: a ward's replica in a round, or a fetch in a recovery.
/// The agent's thread only, but for the bytes of the lease while it streams.
struct Incoming {
  int from = -1;   ///< The rank that sends it.
  int owner = -1;  ///< The rank whose image it is.
  int slot = 0;
  ImageId id, base;
  protocol::ImageSizes sizes;
  bool fetch = false;
  bool with_manifest = true;
  bool streaming = false;       ///< A StreamStart came; from here every piece is taken.
  bool in_parts = false;        ///< A fetched replica that others complete.
  std::vector<int> completers;  ///< Of it, ascending, by what all agreed on.
  std::set<int> missing;        ///< Those of them whose part is not here yet.
  WriteLease lease;
  std::optional<Digest> expected;    ///< As announced by the owner; a fetch has it from the start.
  std::optional<ImageInfo> arrived;  ///< All digests were right.
};

/// What recover() waits for.
struct RecoverCommand {
  enum class Kind : std::uint8_t { kNone, kCheck, kRestore, kNothing, kFailed } kind = Kind::kNone;
  int slot = 0;
  ImageId id;
  protocol::Failure failure;
};

/// A loss that every later call reports.
struct Loss {
  ErrorKind kind = ErrorKind::kPeerLost;
  int rank = -1;
  std::string why;
  [[nodiscard]] std::exception_ptr error() const;
};

class Agent::Impl {
 public:
  Impl(AgentOptions options, std::shared_ptr<Store> store);
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl();

  // --- the trainer's side
  void begin(const Generation& generation, Membership& membership);
  void leave() noexcept;
  Recovered recover(Value& state);
  Staging stage(const Value& state, std::uint64_t step);
  void finish();
  [[nodiscard]] const std::vector<int>& wards() const noexcept { return config_->wards; }
  [[nodiscard]] Replica held(int ward, const NodeRegistry& registry);
  void throw_if_lost() const;
  [[nodiscard]] Stats stats() const;
  [[nodiscard]] std::vector<int> data_peers() const;
  [[nodiscard]] std::string agreement() const;
  [[nodiscard]] std::uint64_t highest_generation() const;

 private:
  // --- agent.cpp: the loop
  /// Runs `task` on the agent's thread, unless the generation it was posted in is over by then.
  void post(std::function<void()> task);
  void post_event(protocol::Event event);
  void feed(const protocol::Event& event);
  /// Any thread.
  void say(int to, std::vector<std::byte> message) const;
  void hear(int from, std::span<const std::byte> received);
  void check_generation(const char* what, int from, std::uint64_t generation) const;
  void lose(int peer, ErrorKind kind, const std::string& why);
  void lost_link(int peer, LostReason reason, const std::string& detail);
  void log(LogLine::Level level, const std::string& text) const;
  void warn(const std::string& text) const { log(LogLine::Level::kWarning, text); }
  void reach(protocol::Point point, ImageId id, int peer = -1, std::uint64_t chunk = 0,
             std::uint64_t chunks = 0) const;
  [[nodiscard]] ImageIdentity identity(int owner, ImageId id, ImageId base) const;
  /// Of a replica, or of a whole image.
  [[nodiscard]] transfer::Shape shape_of(const protocol::ImageSizes& sizes, bool with_manifest,
                                         bool replica) const;
  [[nodiscard]] transfer::Link link_to(int peer, ImageId id, protocol::Point point);
  void signal();

  void perform(const protocol::Send& action);
  void perform(const protocol::AbortTransfers& action);
  void perform(const protocol::NoteDeath& action);
  void perform(const protocol::ReportLost& action);
  void perform(const protocol::Refuse& action);
  void perform(const protocol::Reached& action);
  void perform(const protocol::Prune& action);
  void perform(const protocol::RemoveVault& action);
  // --- agent_round.cpp
  void perform(const protocol::WriteOwn& action);
  void perform(const protocol::AcceptReplica& action);
  void perform(const protocol::ExpectDigest& action);
  void perform(const protocol::SendImage& action);
  void perform(const protocol::AbortRound& action);
  void perform(const protocol::NoteFirstComplete& action);
  void perform(const protocol::Announce& action);
  void check_room_for(std::uint64_t image_bytes, std::uint64_t replica_bytes);
  void copy(const std::shared_ptr<StageJob>& job, const ImageIdentity& identity);
  void settle(const std::shared_ptr<StageJob>& job);
  void persist(ImageId id);
  // --- agent_recovery.cpp
  void perform(const protocol::VerifySlots& action);
  void perform(const protocol::VerifyDisk& action);
  void perform(const protocol::Fetch& action);
  void perform(const protocol::Serve& action);
  void perform(const protocol::CheckStructure& action);
  void perform(const protocol::RestoreTrainer& action);
  void perform(const protocol::RecoveredNothing& action);
  void perform(const protocol::RecoverFailed& action);
  void load_from_disk(const protocol::Fetch& action);
  void command(RecoverCommand command);
  // --- agent_stream.cpp: images that come and go
  void stream_out(int to, int owner, ImageId id, const transfer::Shape& shape,
                  std::function<std::span<const std::byte>()> image,
                  std::function<void(std::uint64_t)> wait_final, std::function<void()> done);
  /// Runs `transfer` on the thread that sends to that rank; what it throws ends the generation, or
  /// is logged.
  void send_on(int to, std::function<void()> transfer, std::function<void()> done);
  /// The same on the thread that receives: what it throws ends the generation or the image.
  void receive_on(int from, int owner, ImageId id, std::function<void()> transfer);
  /// Any thread.
  void lost_in_transfer(int peer, const PeerLost& error);
  void stream_in(int from, const exchange::StreamStart& start);
  void take_starts(int from);
  /// Rank `from` may send this image, in that shape, once. The loop's thread.
  void ask_for(int from, int owner, ImageId id, const transfer::Shape& shape,
               exchange::Content content = exchange::Content::kImage);
  void begin_stream(int from, const exchange::StreamStart& start);
  void arrived(int owner, ImageId id, const ImageInfo& info);
  void not_arrived(int owner, ImageId id, ErrorKind kind, const std::string& why);
  void seal_if_proven(int owner);
  // --- agent_shared.cpp: what this rank and others have in common
  void perform(const protocol::ServeCommon& action);
  void perform(const protocol::StopSharing& action);
  /// The trainer's thread: what a plan for this state shares, with all but those in `apart`.
  [[nodiscard]] PlanOptions plan_options(const Value& state, const std::set<int>& apart) const;
  /// Of the own image that was sealed just now.
  [[nodiscard]] protocol::OwnSealed sealed_event(const StageJob& job, const ImageInfo& info) const;
  void note_sent(const transfer::Shape& shape);
  /// A fetched replica is here: asks for what it leaves out, by its manifest.
  void ask_for_common(int owner, ImageId id);
  void common_arrived(int from, int owner, ImageId id);
  void hear_want(int from, std::span<const std::byte> bytes);
  /// Answers the Want of a rank that this one was told to complete, once both are there.
  void serve_common(int to);
  /// Runs `attempt` now, and again after each release of a slot, until it returns true.
  void when_free(std::function<bool()> attempt);
  [[nodiscard]] bool in_use(SlotKey key) const;
  void hold(SlotKey key) { ++uses_[key]; }
  void release(SlotKey key);
  void retry_waiting();
  [[nodiscard]] std::string note_key() const { return options_.job + "/complete/first"; }

  const AgentOptions options_;
  const std::shared_ptr<Store> store_;
  FileSystem& fs_;
  Vault vault_;
  const std::shared_ptr<const protocol::Config> config_;
  const protocol::WireContext wire_;
  Persistence files_;

  // The agent's thread only:
  protocol::State state_;
  Membership* membership_ = nullptr;
  std::map<int, Incoming> incoming_;                         ///< By owner.
  std::map<int, std::pair<ImageId, Digest>> announced_;      ///< By ward, before it was accepted.
  std::map<int, std::deque<exchange::StreamStart>> starts_;  ///< By sender, not yet taken.
  /// What this rank has asked for and not seen begin: (sender, owner, image, content).
  std::map<std::tuple<int, int, ImageId, exchange::Content>, transfer::Shape> asked_;
  std::map<int, exchange::Want> wants_;               ///< By sender, not yet served.
  std::map<int, protocol::ServeCommon> completions_;  ///< By owner, not yet served.
  std::set<int> refused_fetches_;                     ///< Owners whose image found no room here.
  std::shared_ptr<StageJob> pending_job_;
  std::shared_ptr<StageJob> job_;
  std::map<SlotKey, int> uses_;  ///< Slots that are being sent or persisted.
  std::vector<std::function<bool()>> waiting_;
  std::set<ImageId> aborted_;  ///< Failed steps of this generation that were still being written.
  std::uint64_t complete_in_generation_ = 0;
  Source own_source_ = Source::kOwnMemory;
  int own_source_rank_ = -1;
  Persistence::Found found_;  ///< What VerifyDisk found, for Fetch and Serve.
  bool store_failed_ = false;
  bool closing_ = false;  ///< Everyone finished: links that end are in order.

  // Written by begin() and leave() while no other thread runs, read by all:
  Generation generation_;
  std::atomic<std::uint64_t> generation_number_{0};  ///< For log lines and points of any thread.
  std::atomic<std::uint64_t> epoch_{0};              ///< Changes with each begin() and leave().

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::optional<Loss> loss_;
  RecoverCommand command_;
  bool in_flight_ = false;  ///< A stage() whose outcome or own copy is still open.
  bool recovered_ = false;  ///< recover() succeeded in this generation.
  bool finished_ = false;   ///< The vault is removed.
  int persisting_ = 0;      ///< Complete steps whose files are being written, or are to be.
  int sending_ = 0;         ///< Images, or parts, that are being sent and read from slots.
  Source recovered_source_ = Source::kNothing;
  int recovered_from_ = -1;
  Stats stats_;

  std::set<int> apart_;  ///< With whom nothing is shared any more: it was not the same.

  std::shared_ptr<const StagingPlan> plan_;           ///< The trainer's thread only; and:
  std::set<int> plan_apart_;                          ///< As apart_ was when it was made.
  std::pair<std::uint64_t, std::uint64_t> room_for_;  ///< Image and replica bytes that had room.

  // Last, so that their threads end before what they use goes; the loop is stopped last.
  std::unique_ptr<Worker> loop_ = std::make_unique<Worker>("ms-agent");
  PaceOfGeneration pace_{options_.pace};
  std::unique_ptr<Worker> copy_ = std::make_unique<Worker>("ms-copy");
  std::unique_ptr<Worker> verify_ = std::make_unique<Worker>("ms-verify");
  std::unique_ptr<Worker> persist_ = std::make_unique<Worker>("ms-persist");
  std::map<int, std::unique_ptr<Worker>> send_, receive_;
};

}  // namespace meshstage
