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
#include <meshstage/core/reshard/assembly.hpp>
#include <meshstage/core/stage/pace.hpp>
#include <meshstage/core/stage/snapshot.hpp>

namespace meshstage {

/// Tells stage() what to do while the previous step is unfinished.
enum class WhenBusy : std::uint8_t {
  kWait,  ///< Wait for the previous step, as long as its images move.
  kSkip,  ///< Skip this step: it fails on every rank, and this rank's Stats::skipped counts it.
};

/// The defaults suffice on one host; give `job`, so that a restart finds its images.
struct CheckpointerOptions {
  /// Names the job on its hosts and in its Store: [A-Za-z0-9._-]{1,64}. Empty: MESHSTAGE_JOB, else
  /// the launcher's job id, else a unique id that is made and printed (no restart finds the images
  /// of such a job).
  std::string job = {};
  /// The directory of persisted steps: absolute, "ckpt" below the working directory, or "~/ckpt".
  /// It may be shared, or local to each host; then any rank on the host uses the files there.
  /// Empty: derived from user and job.
  std::filesystem::path directory = {};
  /// The directory of the vault's images: a tmpfs, or any directory with room for four images.
  std::filesystem::path vault_directory = "/dev/shm";
  /// A peer that is silent for this long counts as dead. So each link must move some bytes in this
  /// time, behind whatever is queued there; an image may take longer. The generation also ends,
  /// naming a living rank, if the others have waited this long for that rank, or if it reads for a
  /// recovery and its disk gives no block for this long. A wait in the trainer's collectives ends
  /// a second later: see Checkpointer::group().
  std::chrono::milliseconds deadline{30'000};
  /// How long rejoin() and the constructor wait for all ranks, and the constructor for the Store (a
  /// scheduler needs its time). A rank may call recover() or finish() at most this long after
  /// another.
  std::chrono::milliseconds forming_deadline{300'000};
  /// Every n-th complete step goes to disk, own image and whole replicas; finish() writes the
  /// newest one. The count continues through deaths. 0: only steps of persist_now() go to disk. The
  /// same on every rank.
  std::uint64_t persist_every = 10;
  /// The number of steps that stay on disk, among them the newest step that every rank has. At
  /// least 1.
  std::size_t keep = 1;
  /// Unit of digests and of transfer, in bytes: a power of two from 4096 on, the same on every rank
  /// (checked).
  std::uint64_t block_bytes = std::uint64_t{4} << 20;
  /// Given: the job may be started with another number of ranks than before, or with as many that
  /// cut their states otherwise. The same on every rank. Not given: both are refused.
  ///
  /// If the new ranks themselves have no step that is as new, recover() goes on from a step of the
  /// old ranks: the newest of which some rank's `directory` has a file of each old rank. All ranks
  /// may share the directory, or each host has its own; what a rank needs of another host's files
  /// comes over connections, in memory (up to what its state takes, its share of the copies that
  /// are compared, and every old rank's structure and plain values). finish() and persist_every
  /// write such files. A newer step in vaults on these ranks' hosts is written to files first, if
  /// all its images are there and the disks have room; a replica that borrows needs its lender's
  /// file in the same directory. Otherwise a warning names that step and the reason. recover()
  /// assembles each rank's state as Assembly::plan() does, and stages it as the first step of this
  /// number of ranks. It returns when that step is complete. The old files stay until a newer step
  /// is on disk.
  ///
  /// A job that writes no files (`persist_every` 0 and no `directory`) needs no disk for this: the
  /// old images stay in memory where they lie, beside the slots of the new ranks, until the new
  /// ranks' first step is complete. So until then each host needs memory for both, besides what a
  /// rank needs of other ranks' images: for half of the new slots, and for all if a rank dies
  /// before that step is complete. At a rank without that memory recover() throws OutOfMemory (the
  /// others get RejoinNeeded), and the old number of ranks finds the old step. A replica that
  /// borrows, where its owner's own image is lost, becomes a file also there.
  ///
  /// The same number of ranks whose newest step is cut otherwise (other meshes, placements, shards)
  /// goes on from that step likewise; each rank's image of it becomes a file first, unless the job
  /// writes no files. Each rank's state must have the paths that it had. If a file cannot be
  /// written, or the states cannot be assembled, recover() throws the StructureMismatch that it
  /// throws without this option, with the reason behind it, and no state is touched. Any difference
  /// that an Assembly takes counts as another cut (a plain tensor that became a DTensor, say), and
  /// once one rank has one, ReshardOptions::plain decides the plain values of all ranks.
  std::optional<ReshardOptions> any_world = {};
  WhenBusy when_busy = WhenBusy::kWait;
  /// holders[r]: the ranks that hold a replica of rank r's images; the list's length is the number
  /// of replicas. The same on every rank (checked). mesh's make_holders() gives such lists, across
  /// hosts or racks. Empty: {(r + W/2) mod W}. A job survives as long as each image's owner or one
  /// of its holders is left. A restart may have other lists, and its ranks on other hosts: recovery
  /// finds copies on every host with a rank of the job, and sends them to the new holders. Memory:
  /// two replicas of each ward besides the two own images.
  std::vector<std::vector<int>> holders = {};
  /// Lets replicas leave out a tensor that the mesh already replicates: they borrow it from the
  /// lender, a rank in another failure domain that has the same bytes. That saves network traffic
  /// and the holders' memory; a lost rank gets the tensor from the lender's own image. Empty (the
  /// default): replicas are whole. dtensor::borrowed_tensors() finds such tensors by their
  /// placements. Any other function may be given if all ranks give the same (the lists of lenders
  /// are compared). Each step compares the bytes. If they differ, the step fails with a warning,
  /// and replicas do not leave these tensors out any more. Restoring a lost rank takes a holder and
  /// all its lenders. So the job survives fewer losses of two hosts, but always the loss of one;
  /// `meshstage mesh survive --borrow-replicated` counts them. Holders write no files of replicas
  /// that borrow. Stats count the borrowed bytes.
  BorrowedTensors borrowed = {};
  /// Slows staging down, so that training keeps its memory bandwidth (see BandwidthCap). Each
  /// copying thread calls it. Must outlive the Checkpointer. Null: staging copies as fast as the
  /// memory allows.
  Pace* pace = nullptr;
  /// How many threads copy this rank's state, and prove and restore it in a recovery. 0: this
  /// rank's share of the processors that the process may use (default_copy_threads()): half of it
  /// beside the trainer, the whole of it in a recovery, for which the trainer waits.
  unsigned copy_threads = 0;
  /// The number of connections that this rank wants to each rank with which it exchanges images, at
  /// most 16; the smaller number of the two ranks counts. 0: 1 if this rank's share of the
  /// processors is four or less, else one for each processor, at most 8; and 1 with a `transport`
  /// of the caller's.
  unsigned connections = 0;
  /// The same in a recovery, for which the trainer waits; at most 16, and at least `connections`.
  /// 0: `connections` if that is given; else one for each processor of this rank's share, at least
  /// 2 and at most 8 (1 with a `transport` of the caller's). The connections are made when a
  /// generation forms. To a rank that is neither its holder nor its ward a rank has one.
  unsigned recovery_connections = 0;
  /// The streams on which the trainer uses its tensors on devices; the legacy default stream for a
  /// device that is not named here. The copies of stage() and recover() wait for the work issued on
  /// these streams before the call. Tensors of the CPU and of several devices may be mixed.
  std::vector<TrainerStream> streams = {};
  /// Given: each generation has a second group for the trainer's collectives, over NCCL, on this
  /// rank's device: Checkpointer::device_group(). `streams` names the stream on which the trainer
  /// uses the memory that it gives to the group. All ranks give a device, each its own, or none
  /// does (checked). The constructor throws InvalidState if the device, NCCL or its module cannot
  /// be used. NEVER use the group while another NCCL communicator of the same device, such as the
  /// program's own, has work pending on any rank. NCCL waits for ever if two ranks issue operations
  /// of two communicators in differing order. The engine itself never uses NCCL: images go from the
  /// device to the vault, and from host to host over connections.
  std::optional<Device> device_group = {};
  /// Whether stage() first copies tensors on devices inside their devices. The first stage() or
  /// recover() allocates the snapshot's memory and keeps it; a larger state gets new memory. If a
  /// device has too little memory, one warning says so, Stats::snapshots_refused counts it, and
  /// staging goes on without a snapshot.
  Snapshot snapshot = Snapshot::kOff;
  /// The most memory of each device that a snapshot may take, in bytes. 0: as much as the GPU
  /// driver gives.
  std::uint64_t snapshot_max_bytes = 0;
  /// For finding errors in the trainer: digests every CPU tensor at stage() and again when it is
  /// copied. A tensor that changed in between fails the step on every rank, and this rank's
  /// staged() throws InvalidState naming the tensor. Costs two more reads of each tensor.
  bool verify_source = false;
  /// Takes the job from another start whose ranks are alive: their calls throw Fenced from then on.
  /// Without it this start is refused and touches nothing. For one start only: do not give it to a
  /// rank that is started anew later. Also MESHSTAGE_TAKE_OVER=1.
  bool take_over = false;
  /// Rank, world size and so on; detected from the launcher's variables unless given.
  std::optional<RankEnvironment> environment = {};
  /// The name of the Store where ranks meet, for example "file:/shared/dir". Empty:
  /// MESHSTAGE_STORE, else a directory below `directory`.
  std::string store = {};
  /// The transport; null for sockets and Gloo. In-process tests give an in-process one.
  std::shared_ptr<Transport> transport = {};
  /// The Store itself, in place of its name in `store`.
  std::shared_ptr<Store> store_object = {};
  /// The peers that group() reaches; kAll costs a connection for each pair of ranks.
  TrainingLinks training_links = TrainingLinks::kTree;
  /// The file system of vault and files; null for the real one. Must outlive the Checkpointer.
  FileSystem* file_system = nullptr;
  /// The file for a trace of this rank's staging, sending, receiving, agreement, recovery and disk,
  /// to open in ui.perfetto.dev. Rank 3 writes "trace.json" as trace.r3.json; each process starts
  /// the file anew. Empty: no trace.
  std::filesystem::path trace = {};
  /// The file for this rank's stats(), kept up to date: "m.jsonl" gets a line of JSON
  /// (stats_json()) whenever a generation forms or recovers and a step becomes complete, fails or
  /// is on disk; "m.prom" is replaced then (stats_prometheus()). Rank 3 writes m.r3.jsonl or
  /// m.r3.prom, on the real file system. Lines are appended to what earlier processes wrote. Empty:
  /// no file.
  std::filesystem::path metrics = {};
  /// Gets stats() at the same moments, on a thread of its own, so it may wait. If calls take long,
  /// the next one has what changed meanwhile. The last call has returned when the Checkpointer is
  /// destroyed: its destructor waits for it. A callback that throws is reported, and not called
  /// again.
  std::function<void(const Stats&)> on_stats = {};
  Observer observer = {};
  std::function<void(const LogLine&)> log = {};  ///< Called on a thread of its own, so it may wait.
};

}  // namespace meshstage
