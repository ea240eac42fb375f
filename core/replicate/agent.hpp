#pragma once
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/async/work.hpp>
#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/replicate/observer.hpp>
#include <meshstage/core/replicate/shared_tensors.hpp>
#include <meshstage/core/stage/pace.hpp>
#include <meshstage/core/tree/node.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

/// One line for a person.
struct LogLine {
  enum class Level : std::uint8_t { kInfo, kWarning } level = Level::kInfo;
  std::string text;  ///< Starts with job, generation, step and rank.
};

/// Where this rank's part of a recovered step came from.
enum class Source : std::uint8_t { kNothing, kOwnMemory, kHolderMemory, kDisk };
/// "nothing", "own memory", "holder memory", "disk".
MESHSTAGE_API std::string_view to_string(Source source) noexcept;

struct Recovered {
  std::uint64_t step = 0;  ///< 0 where there was nothing to recover.
  ImageId id;              ///< kNoImage where there was nothing.
  Source source = Source::kNothing;
  int from_rank = -1;            ///< Whose memory or disk; this rank for own memory and own disk.
  std::uint64_t generation = 0;  ///< The generation in which training goes on.
};

/// What became of a staged step.
enum class Outcome : std::uint8_t {
  kComplete,  ///< Every rank has sealed its image and its wards' replicas.
  kFailed,    ///< Some rank voted no; the step before stays the newest.
  kSkipped,   ///< This rank left the step out (WhenBusy::kSkip).
};
/// "complete", "failed", "skipped".
MESHSTAGE_API std::string_view to_string(Outcome outcome) noexcept;

/// What a stage() does while the step before is unfinished.
enum class WhenBusy : std::uint8_t {
  kWait,  ///< Wait for it, at most for the deadline.
  kSkip,  ///< Leave this step out everywhere: it fails, Stats::skipped counts it here.
};

/// One staged step on its way. Move-only; may be dropped at any time: the step goes on.
class Staging {
 public:
  Staging() = default;
  Staging(Work<void> staged, Work<Outcome> outcome, std::uint64_t step)
      : staged_(std::move(staged)), outcome_(std::move(outcome)), step_(step) {}

  /// Ready when the trainer may change its tensors. An empty Staging is ready.
  /// Throws what went wrong while copying.
  [[nodiscard]] Work<void>& staged() noexcept { return staged_; }
  /// Ready when this rank knows the outcome. Throws RejoinNeeded if the generation
  /// ended before.
  [[nodiscard]] Work<Outcome>& outcome() noexcept { return outcome_; }
  [[nodiscard]] std::uint64_t step() const noexcept { return step_; }

 private:
  Work<void> staged_;
  Work<Outcome> outcome_;
  std::uint64_t step_ = 0;
};

/// Figures since the agent was made. Times are seconds of the newest step.
struct Stats {
  std::uint64_t complete = 0, failed = 0, skipped = 0, persisted = 0, persist_failed = 0;
  double stage_seconds = 0;      ///< From stage() to staged().
  double replicate_seconds = 0;  ///< From stage() to the outcome.
  double persist_seconds = 0;
  std::uint64_t image_bytes = 0;  ///< Of this rank's newest image.
  std::uint64_t vault_bytes = 0;  ///< All slots of this rank's vault.
  /// Bytes of this rank's images that went to holders in rounds, and those that were left out
  /// because other ranks have them (AgentOptions::shared); fetches in a recovery do not count.
  std::uint64_t replica_bytes_sent = 0;
  std::uint64_t replica_bytes_spared = 0;
};

/// What a holder has of one of its wards.
struct Replica {
  int owner = 0;
  ImageId id;  ///< The newest complete step.
  /// The owner's state dict as it was staged: memory of its own, the caller may keep it.
  Value state;
};

struct AgentOptions {
  std::string job;
  int rank = 0;
  int world_size = 1;
  int local_world_size = 1;               ///< Ranks that share this host's memory.
  std::vector<std::vector<int>> holders;  ///< Empty: {(r + W/2) mod W}.
  std::filesystem::path directory;        ///< Of persisted images.
  std::filesystem::path vault_directory = "/dev/shm";
  std::chrono::milliseconds deadline{30'000};
  std::chrono::milliseconds recover_deadline{300'000};
  std::uint64_t persist_every = 10;
  std::uint64_t block_bytes = std::uint64_t{4} << 20;
  WhenBusy when_busy = WhenBusy::kWait;
  SharedTensors shared;        ///< Empty: every replica is whole.
  Pace* pace = nullptr;        ///< Holds staging back; must outlive the agent. Null: full speed.
  bool verify_source = false;  ///< Fail a step whose source changed before it was staged.
  Observer observer;
  std::function<void(const LogLine&)> log;  ///< Null: warnings go to standard error.
  FileSystem* fs = nullptr;                 ///< Null: the real one. Must outlive the agent.
};

/// Runs one rank's protocol: feeds transition() with what happens, and carries out what it answers,
/// over a vault, the links and groups of a generation, and a directory of files.
///
/// Threads: `ms-agent` (the only one that touches the protocol's state), `ms-copy` (staging),
/// `ms-verify` (recovery), `ms-persist`, and for each partner `ms-send` and `ms-recv`. All end with
/// the agent. begin(), leave(), recover(), stage(), finish(): one caller at a time.
class MESHSTAGE_API Agent {
 public:
  /// Attaches the vault. Throws what Vault::attach throws, and InvalidArgument on senseless
  /// options.
  Agent(AgentOptions options, std::shared_ptr<Store> store);
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;
  ~Agent();

  /// The ranks this one exchanges images with, ascending: its holders, its wards, the other holders
  /// of its wards (which restore a holder when the owner is gone), those who complete its replicas
  /// and those whose replicas it completes.
  [[nodiscard]] std::vector<int> data_peers() const;
  /// What all ranks' options must have in common: "blocks of 4194304 bytes, holders 1f0c...".
  [[nodiscard]] std::string agreement() const;
  /// The highest generation this rank's vault has seen, or that a file of the job on its disk
  /// names: all memory and the Store may be gone, and what is on disk then must be the older.
  [[nodiscard]] std::uint64_t highest_generation() const;

  /// Enters a generation; `membership` outlives the agent's stay in it. The recovery starts.
  void begin(const Generation& generation, Membership& membership);
  /// Leaves the generation: aborts and closes it, and waits until no transfer of it writes any more
  /// (rule 8). Stagings that are open end with the loss, or Cancelled. Idempotent.
  void leave() noexcept;

  /// As Checkpointer::recover, stage, finish.
  Recovered recover(Value& state);
  Staging stage(const Value& state, std::uint64_t step);
  void finish();
  /// As Checkpointer::wards, held.
  [[nodiscard]] const std::vector<int>& wards() const noexcept;
  [[nodiscard]] Replica held(int ward, const NodeRegistry& registry);

  /// Throws the loss of a peer, if one is known; it stays known until begin().
  void throw_if_lost() const;
  [[nodiscard]] Stats stats() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace meshstage
