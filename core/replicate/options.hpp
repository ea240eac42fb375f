#pragma once
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/comm/rank_environment.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/comm/transport.hpp>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/replicate/borrowed_tensors.hpp>
#include <meshstage/core/replicate/observer.hpp>
#include <meshstage/core/replicate/results.hpp>
#include <meshstage/core/stage/pace.hpp>

namespace meshstage {

/// What a stage() does while the step before is unfinished.
enum class WhenBusy : std::uint8_t {
  kWait,  ///< Wait for it, at most for the deadline.
  kSkip,  ///< Leave this step out everywhere: it fails, Stats::skipped counts it here.
};

/// Everything has a default that suffices on one host; `job` alone makes a restart find its images.
struct CheckpointerOptions {
  /// Names the job on its hosts and in its Store: [A-Za-z0-9._-]{1,64}. Empty: MESHSTAGE_JOB, else
  /// the launcher's job id, else a unique id is made and printed (and then no restart can find it).
  std::string job = {};
  /// Where complete steps are persisted, shared or local to the host: absolute, "ckpt" below the
  /// working directory, or "~/ckpt". Empty: derived from user and job.
  std::filesystem::path directory = {};
  /// Where the images live: a tmpfs, or any directory with room for four images.
  std::filesystem::path vault_directory = "/dev/shm";
  /// A peer that is silent for so long is taken for dead; also bounds every wait on peers.
  std::chrono::milliseconds deadline{30'000};
  /// How long rejoin() and the constructor wait for every rank to be there, and the constructor for
  /// the Store (a scheduler needs its time).
  std::chrono::milliseconds forming_deadline{300'000};
  /// Every n-th complete step goes to disk, own image and whole replicas, and the newest one in
  /// finish(). The ranks count on through deaths. 0: none but those of persist_now(). The same on
  /// every rank.
  std::uint64_t persist_every = 10;
  /// So many steps stay on disk, the newest that every rank has among them. At least 1.
  std::size_t keep = 1;
  /// Unit of digests and of transfer, bytes: a power of two from 4096 on, the same on every rank
  /// (checked).
  std::uint64_t block_bytes = std::uint64_t{4} << 20;
  WhenBusy when_busy = WhenBusy::kWait;
  /// holders[r] = the ranks that hold a replica of r's images: as many copies as the list is long.
  /// The same on every rank (checked); mesh's make_holders() gives such lists, across hosts or
  /// racks. A restart may have others, but a copy is then found at its owner and its new holders
  /// alone. Empty: {(r + W/2) mod W}. A job survives the loss of all but one of each
  /// rank's owner and holders. Memory: two replicas of each ward besides the two own images.
  std::vector<std::vector<int>> holders = {};
  /// What the mesh already replicates need not travel: replicas borrow a tensor that a rank in
  /// another failure domain, the lender, has byte for byte. That saves the network and the holders'
  /// memory; a lost rank gets the tensor from the lender's own image. dtensor::borrowed_tensors()
  /// finds such tensors by their placements; any function will do that all ranks agree on (the
  /// lenders are compared). Each step compares the bytes: if they differ the step fails, a warning
  /// says so, and from then on those tensors are not borrowed. A lost rank takes a holder and all
  /// its lenders, so fewer losses of two hosts are survived (`meshstage mesh survive
  /// --spare-replicated` counts them); the loss of one host always is. Holders write no files of
  /// replicas that borrow. Empty (the default): replicas are whole. Stats count what was borrowed.
  BorrowedTensors borrowed = {};
  /// Holds staging back, so that it leaves memory bandwidth to the training: a BandwidthCap, say.
  /// Each thread that copies asks it. Must outlive the Checkpointer. Null: as fast as the memory
  /// is.
  Pace* pace = nullptr;
  /// How many threads copy this rank's state. 0: half of this rank's share of the processors that
  /// the process may use when the Checkpointer is made (default_copy_threads(), Beside::kTrainer).
  unsigned copy_threads = 0;
  /// The streams on which the trainer uses its tensors on devices; the legacy default stream of a
  /// device that is not named. stage() comes behind what was issued there before the call, and so
  /// does recover(). Tensors of the CPU and of several devices may be mixed.
  std::vector<TrainerStream> streams = {};
  /// For finding errors: digest every tensor of the CPU at stage() and again when it is copied. One
  /// that changed in between fails the step on every rank, and its rank's staged() throws
  /// InvalidState naming the tensor. Reads everything twice more.
  bool verify_source = false;
  /// Rank, world size and so on; detected from the launcher's variables unless given.
  std::optional<RankEnvironment> environment = {};
  /// Where ranks meet: "file:/shared/dir". Empty: MESHSTAGE_STORE, else a directory below
  /// `directory`.
  std::string store = {};
  /// The transport; null for sockets and Gloo. In-process tests give an in-process one.
  std::shared_ptr<Transport> transport = {};
  /// The Store itself, instead of the name above.
  std::shared_ptr<Store> store_object = {};
  /// Which peers group() reaches; kAll costs a connection for each pair of ranks.
  TrainingLinks training_links = TrainingLinks::kTree;
  /// Where vault and files live; null for the real one. Must outlive the Checkpointer.
  FileSystem* file_system = nullptr;
  /// What this rank does and when (staging, sending, receiving, agreement, recovery, disk), for
  /// ui.perfetto.dev: "trace.json" is written as trace.r3.json by rank 3, anew by each process.
  /// Empty: none.
  std::filesystem::path trace = {};
  Observer observer = {};
  std::function<void(const LogLine&)> log = {};
};

}  // namespace meshstage
