#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/async/origin.hpp>
#include <meshstage/core/async/work.hpp>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/core/memory/pinning.hpp>
#include <meshstage/core/memory/resource.hpp>
#include <meshstage/core/stage/pace.hpp>
#include <meshstage/core/stage/snapshot.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

/// Which host memory a stager uses and how it copies. The objects pointed to must outlive the
/// stager and, except for `pace`, every Value that the stager returned.
struct StagerOptions {
  /// Page-lock staged storages (Tensor::is_pinned()), so that a device copies to and from them by
  /// itself. If the system refuses, or if there is no `pinner`, the stager warns once and stages
  /// into memory that is not page-locked.
  bool pin_memory = false;
  /// Storages below so many bytes are left unpinned; the others take whole pages.
  std::size_t pin_memory_min_bytes = 4096;
  /// Page-locks the memory; for example `DeviceRuntime::of(DeviceType::kCuda).pinner(device)`. Only
  /// pinned storages take tensors from devices at the full rate and without blocking the caller:
  /// set pin_memory_min_bytes to 1 for such tensors.
  MemoryPinner* pinner = nullptr;

  /// The streams on which the trainer uses its tensors on devices; a device that is not named here
  /// has its legacy default stream. Copies come behind the work issued there before the call.
  std::vector<TrainerStream> streams = {};
  /// Whether stage_async() first copies tensors on devices inside their devices: then
  /// before_update() comes behind that copy. Its memory is made by the first stage_async(), and
  /// kept until clear(); it is made anew if a state is larger. If a device has too little memory,
  /// `warn` is called once, and staging goes on without a snapshot. A call waits until the previous
  /// snapshot was copied to the host. stage() takes no snapshot: it returns when all is copied.
  Snapshot snapshot = Snapshot::kOff;
  /// The most memory of each device, in bytes, for a snapshot. 0: as much as the driver gives.
  std::uint64_t snapshot_max_bytes = 0;

  /// Stage into memory that other processes can map (Tensor::is_shared(), Storage::location()).
  bool share_memory = false;

  /// The memory for staged bytes; null for host_memory(). Not together with share_memory.
  MemoryResource* memory = nullptr;
  /// The most host memory, in bytes, that the stager may hold at a time; beyond it stage() throws
  /// OutOfMemory before it allocates. Memory that returned Values keep counts too; the memory of
  /// storages that are not being staged is given up first. 0: no cap.
  std::size_t max_bytes = 0;
  /// Slows copying down (see BandwidthCap). Null: as fast as the memory allows.
  Pace* pace = nullptr;
  /// Threads that copy a large state, counting the one that runs the staging. 0: the stager's
  /// default for the processors that it finds when it is made (default_copy_threads()). stage()
  /// takes its share of them, stage_async() half of that, because the trainer computes meanwhile.
  unsigned copy_threads = 0;

  /// For finding errors in the trainer: digests every CPU tensor at the call and again when it is
  /// copied. Throws InvalidState, naming a tensor that changed in between. Costs two more reads of
  /// each tensor. Tensors on devices are not read.
  bool verify_source = false;
  /// Gets each warning, on the thread that calls the stager. Null: standard error.
  std::function<void(const std::string&)> warn = {};
};

/// Copies state dicts into host memory of its own: the in-memory stager, without a vault.
///
///     ms::StateDictStager stager;
///     ms::Value staged = stager.stage(state);    // state may change now; staged does not follow
///
///     ms::Work<ms::Value> work = stager.stage_async(state);
///     forward_and_backward();                    // only reads what is staged
///     ms::Value staged = work.get();             // now the state may change
///
/// Each distinct storage is copied whole, once. Staged tensors share storages where the sources
/// did, and have the sources' shapes, strides and offsets.
/// Host memory belongs to the storage that it was made for. Staging that storage again refreshes
/// the memory, so earlier Values show the new bytes too: clone() tensors that must keep theirs.
/// Staging another storage never changes what an earlier Value shows: several state dicts may share
/// one stager.
/// The memory of a dead storage is used again once no Value has it; until then its contents stay. A
/// storage gets new memory when the stager's memory has become wasteful, when `max_bytes` is used
/// up, or when the state contains staged memory. Then earlier Values are not refreshed any more,
/// and stay as they are.
/// The stager keeps no source alive beyond that source's staging.
/// Devices copy their tensors, on a stream of the stager, behind the work issued on the trainer's
/// stream before the call (StagerOptions::streams); the staged tensors are on the CPU. All copies
/// are issued before the call returns, so a trainer that calls before_update() need not wait on the
/// host:
///
///     ms::Work<ms::Value> work = stager.stage_async(state);
///     forward_and_backward();
///     stager.before_update({device, stream});    // the device waits, this thread does not
///     optimizer_step();
///
/// If a staging fails or is given up while a device still copies, the memory is kept until the
/// device is done.
/// Threads: any; calls take turns, and stagings run one after the other in the order of the calls.
/// stage_async() starts one thread, and the first large copy its helpers; all end with the stager.
class MESHSTAGE_API StateDictStager {
 public:
  explicit StateDictStager(StagerOptions options = {});
  StateDictStager(const StateDictStager&) = delete;
  StateDictStager& operator=(const StateDictStager&) = delete;
  /// Ends the stagings under way soon: their Works throw Cancelled, and no source is read
  /// afterwards.
  ~StateDictStager();

  /// Returns when everything is copied: `state` may change from then on. Containers and Nodes of
  /// the result are new; scalars and strings are those of `state`.
  /// Throws OutOfMemory, and InvalidArgument, with the path, for a cycle and for a tensor whose
  /// memory the driver does not know as its device's. Throws InvalidState if a trainer's stream is
  /// being captured into a graph (before anything is issued), if a device fails, or if
  /// verify_source finds a tensor that changed. The stager stays usable. Earlier Values are as they
  /// were, unless copying had begun (InvalidState): then their bytes are unspecified.
  [[nodiscard]] Value stage(const Value& state);

  /// stage() on the stager's thread. The call itself reads the tree and takes its scalars, so the
  /// tree may change at once. The bytes of its tensors may change when the Work is ready; until
  /// then the stager keeps the storages alive, also if the state drops them.
  /// Throws what stage() throws for a wrong state; later errors come out of the Work, once.
  /// Destroying the Work cancels the staging: the source may still be read until another call to
  /// the stager returns.
  [[nodiscard]] Work<Value> stage_async(const Value& state);

  /// Work that the trainer issues on `stream` from now on comes behind all copies of the latest
  /// staging from that device, or behind its snapshot. The device waits, not the calling thread.
  /// Throws InvalidState if the stream is being captured, or the error that the driver reports.
  void before_update(const TrainerStream& stream);

  /// The number of living storages that have host memory now, and their bytes (each counted once).
  [[nodiscard]] std::size_t cached_storages() const;
  [[nodiscard]] std::uint64_t cached_bytes() const;
  /// How many structures were staged. The stager remembers the latest four: staging one of them
  /// again is fast.
  [[nodiscard]] std::uint64_t plans() const;
  /// Lets go of the memory when the stagings under way are done. Values keep their memory and are
  /// not refreshed any more.
  void clear();

 private:
  class Impl;
  std::unique_ptr<Impl, DeleteHere> impl_;  // a forked child's copy does nothing
};

}  // namespace meshstage
