#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <meshstage/core/async/work.hpp>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

/// One line for a person.
struct LogLine {
  enum class Level : std::uint8_t { kInfo, kWarning } level = Level::kInfo;
  std::string text;  ///< Starts with job, generation, step and rank.
};

/// The source of this rank's image of a recovered step.
enum class Source : std::uint8_t { kNothing, kOwnMemory, kHolderMemory, kDisk };
/// "nothing", "own memory", "holder memory", "disk".
MESHSTAGE_API std::string_view to_string(Source source) noexcept;

/// The result of recover(); the step is 0 if there was nothing to recover.
struct Recovered {
  std::uint64_t step = 0;
  ImageId id;  ///< kNoImage where there was nothing.
  Source source = Source::kNothing;
  int from_rank = -1;            ///< The rank whose memory or disk it was, maybe this one.
  std::uint64_t generation = 0;  ///< The generation in which training goes on.
  /// Not 0: this many ranks staged the step, another number than now, or as many whose states were
  /// cut otherwise, and the state was assembled from their images (CheckpointerOptions::any_world).
  /// `id` is the id of the new ranks' first step; `source` is kHolderMemory if this rank's
  /// directory has no file of the old one.
  int old_world_size = 0;
};

/// The outcome of a staged step.
enum class Outcome : std::uint8_t {
  kComplete,  ///< Every rank has sealed its image and its wards' replicas.
  kFailed,    ///< Some rank voted no; the previous complete step stays the newest.
  kSkipped,   ///< This rank skipped the step (WhenBusy::kSkip).
};
/// "complete", "failed", "skipped".
MESHSTAGE_API std::string_view to_string(Outcome outcome) noexcept;

/// The outcome of a staged step on disk; Outcome is the outcome in memory.
enum class DiskOutcome : std::uint8_t {
  kEverywhere,  ///< Every rank has its files, synced: the step survives the loss of all memory.
  kNotDue,      ///< The step was not due on disk, or did not become complete.
  kFailed,  ///< This rank could not write the step, or a newer step was on every rank's disk first.
};
/// "everywhere", "not due", "failed".
MESHSTAGE_API std::string_view to_string(DiskOutcome outcome) noexcept;

class DevicesStaged;

/// One staged step on its way. Move-only. The caller may drop it at any time: the step goes on.
class Staging {
 public:
  Staging() = default;
  Staging(Work<void> staged, Work<Outcome> outcome, Work<DiskOutcome> persisted, std::uint64_t step,
          std::shared_ptr<DevicesStaged> devices = nullptr)
      : staged_(std::move(staged)),
        outcome_(std::move(outcome)),
        persisted_(std::move(persisted)),
        step_(step),
        devices_(std::move(devices)) {}

  /// Ready when the trainer may change its tensors. An empty Staging is ready. Throws the error of
  /// the copying.
  [[nodiscard]] Work<void>& staged() noexcept { return staged_; }
  /// The counterpart of staged() for tensors on a device: work that the trainer issues on `stream`
  /// from now on waits for the copies of that device's tensors. The calling thread does not wait
  /// for the device, only until the copies are issued; without copies the call does nothing.
  /// Tensors of the CPU need staged(), tensors of each other device a call of their own. Throws
  /// InvalidState, before it issues anything, if the stream is being captured into a graph, or the
  /// error that the GPU driver reports.
  MESHSTAGE_API void before_update(const TrainerStream& stream);
  /// The same for all tensors of the step: each device waits on its streams in `streams`, or on its
  /// legacy default stream if none of them is named there. The calling thread waits at most until
  /// the copies are issued and the CPU's tensors were read. Throws what the call above throws; an
  /// error of the copying is thrown by staged().
  MESHSTAGE_API void before_update(std::span<const TrainerStream> streams);
  /// Ready when this rank knows the outcome: whether the step is complete in the ranks' memory.
  /// Throws RejoinNeeded if the generation ended before.
  [[nodiscard]] Work<Outcome>& outcome() noexcept { return outcome_; }
  /// Ready when this rank knows the step's outcome on disk; right after outcome() if the step was
  /// not due on disk. If another rank cannot write the step, this rank learns that with the next
  /// step that all ranks have written. Throws RejoinNeeded if the generation ended before.
  [[nodiscard]] Work<DiskOutcome>& persisted() noexcept { return persisted_; }
  [[nodiscard]] std::uint64_t step() const noexcept { return step_; }

 private:
  Work<void> staged_;
  Work<Outcome> outcome_;
  Work<DiskOutcome> persisted_;
  std::uint64_t step_ = 0;
  std::shared_ptr<DevicesStaged> devices_;
};

/// Counts since the Checkpointer was made. Times are seconds that the newest step took.
struct Stats {
  std::uint64_t complete = 0, failed = 0, skipped = 0, persisted = 0, persist_failed = 0;
  double stage_seconds = 0;      ///< From stage() to staged().
  double replicate_seconds = 0;  ///< From stage() to the outcome.
  double persist_seconds = 0;
  std::uint64_t complete_step = 0;  ///< The newest step that this rank knows to be complete.
  /// The newest step that this rank knows to be on every rank's disk.
  std::uint64_t disk_step = 0;
  std::uint64_t image_bytes = 0;  ///< Of this rank's newest image.
  std::uint64_t vault_bytes = 0;  ///< All slots of this rank's vault.
  /// Bytes of the vault that are page-locked, so that devices copy to and from them at their full
  /// rate; and how often the system refused to page-lock slots.
  std::uint64_t page_locked_bytes = 0, page_locks_refused = 0;
  /// Memory of devices for snapshots, and how often there was not enough (see Snapshot).
  std::uint64_t snapshot_bytes = 0, snapshots_refused = 0;
  /// Bytes of this rank's images that went to holders in rounds, and bytes that replicas borrowed
  /// from lenders instead. Transfers of a recovery do not count.
  std::uint64_t replica_bytes_sent = 0;
  std::uint64_t replica_bytes_borrowed = 0;
  /// Bytes that holders had already, so they were not sent.
  std::uint64_t replica_bytes_kept = 0;
  /// Connections for images to each rank with which this rank exchanges images, while the trainer
  /// works, in the newest generation; the smallest number if they differ, 0 without such a rank.
  unsigned connections = 0;
  /// The same in a recovery (CheckpointerOptions::recovery_connections).
  unsigned recovery_connections = 0;
};

/// A holder's replica of one of its wards, decoded.
struct Replica {
  int owner = 0;
  ImageId id;  ///< The newest complete step.
  /// The owner's state dict as it was staged, in memory of its own, so the caller may keep it.
  Value state;
};

}  // namespace meshstage
