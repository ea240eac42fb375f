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
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

/// What a stager's host memory is and how it is filled. The objects pointed to must outlive the
/// stager and, but for `pace`, every Value that it returned.
struct StagerOptions {
  /// Page-lock staged storages (Tensor::is_pinned()), so that a device copies to and from them by
  /// itself. Where that is refused, or there is no `pinner`, one warning is given and staging goes
  /// on without.
  bool pin_memory = false;
  /// Storages below so many bytes are left unpinned; the others take whole pages.
  std::size_t pin_memory_min_bytes = 4096;
  /// A device's, say: `DeviceRuntime::of(DeviceType::kCuda).pinner(device)`. Tensors on devices are
  /// copied at the full rate, and without blocking the caller, only into pinned storages: set
  /// pin_memory_min_bytes to 1 for them.
  MemoryPinner* pinner = nullptr;

  /// The streams on which the trainer uses its tensors on devices; the legacy default stream of a
  /// device that is not named. Staging comes behind what was issued there before the call.
  std::vector<TrainerStream> streams = {};

  /// Stage into memory that other processes can map (Tensor::is_shared(), Storage::location()).
  bool share_memory = false;

  /// Where staged bytes live; null for host_memory(). Not together with share_memory.
  MemoryResource* memory = nullptr;
  /// Refuse to hold more host memory at a time, in bytes: OutOfMemory before any is allocated. What
  /// returned Values keep counts too; storages that are not being staged give up theirs first.
  /// 0: no cap.
  std::size_t max_bytes = 0;
  /// Holds copying back: a BandwidthCap, say. Null: as fast as the memory is.
  Pace* pace = nullptr;
  /// Threads that copy a large state, the stager's or the caller's own included. 0: by the
  /// processors that the stager finds when it is made (default_copy_threads()): stage() takes its
  /// share of them, stage_async() half of that, because the trainer computes meanwhile.
  unsigned copy_threads = 0;

  /// For finding errors: digest every tensor at the call and again when it is copied, and throw
  /// InvalidState, naming one, if it changed in between. Reads everything twice more. Tensors on
  /// devices are not looked at.
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
/// Each distinct storage is copied whole, once; staged tensors share where the sources did, and
/// have their shapes, strides and offsets.
/// Host memory belongs to the storage that it was made for. Staging that storage again refreshes
/// it, so earlier Values show the new bytes too (clone() what must last). Staging another storage
/// never changes what an earlier Value shows: several state dicts may share one stager.
/// The memory of a storage that died is used again once no Value has it; its contents stay as long
/// as a Value does. A storage gets new memory when the stager's memory has become wasteful, where
/// `max_bytes` is used up, or when the state holds what was staged before: then earlier Values are
/// not refreshed any more, and stay as they are.
/// No source is kept alive beyond its own staging.
/// Tensors on devices are copied by their devices, on a stream of the stager's own, behind what was
/// issued on the trainer's stream before the call (StagerOptions::streams); the staged ones are on
/// the CPU. All copies are issued before the call returns, so a trainer that calls before_update()
/// need not wait on the host:
///
///     ms::Work<ms::Value> work = stager.stage_async(state);
///     forward_and_backward();
///     stager.before_update({device, stream});    // the device waits, this thread does not
///     optimizer_step();
///
/// A device that still copies when its staging has failed or was given up keeps the memory until it
/// is done.
/// Threads: any; calls take turns, stagings are done one after the other in the order of the calls.
/// stage_async() starts one thread, and the first large copy its helpers; all end with the stager.
class MESHSTAGE_API StateDictStager {
 public:
  explicit StateDictStager(StagerOptions options = {});
  StateDictStager(const StateDictStager&) = delete;
  StateDictStager& operator=(const StateDictStager&) = delete;
  /// Stagings under way end soon: their Works throw Cancelled, and no source is read afterwards.
  ~StateDictStager();

  /// Returns when everything is copied: `state` may change from then on. Containers and Nodes of
  /// the result are new, scalars and strings as in `state`. Throws InvalidArgument (a cycle, a
  /// tensor whose memory the driver does not know as its device's: with its path), OutOfMemory,
  /// InvalidState if a trainer's stream is being captured into a graph (before anything is issued),
  /// if a device fails and, if asked to verify_source, if a tensor changed; the stager stays
  /// usable. What was staged before is as it was, unless copying had begun (InvalidState): then its
  /// bytes are unspecified.
  [[nodiscard]] Value stage(const Value& state);

  /// The same on the stager's thread. At the call the tree is read and its scalars are taken: it
  /// may change at once. What its tensors' storages hold may change when the Work is ready; until
  /// then they are kept alive, also where the state drops them. Throws as stage() for what is wrong
  /// with the state; what fails later comes out of the Work, once. A Work given up cancels its
  /// staging: the source may still be read until another call to the stager returns.
  [[nodiscard]] Work<Value> stage_async(const Value& state);

  /// What the trainer issues on its stream from now on comes behind all copies of the latest
  /// staging from that device. Waits on the device, not here. Throws InvalidState if the stream is
  /// being captured, or what the driver reports.
  void before_update(const TrainerStream& stream);

  /// Living storages that have host memory now, and their bytes (each once).
  [[nodiscard]] std::size_t cached_storages() const;
  [[nodiscard]] std::uint64_t cached_bytes() const;
  /// How many structures were staged. The latest four are known: staging one of them again is fast.
  [[nodiscard]] std::uint64_t plans() const;
  /// Lets go of the memory when the stagings under way are done; Values keep theirs, and are not
  /// refreshed any more.
  void clear();

 private:
  class Impl;
  std::unique_ptr<Impl, DeleteHere> impl_;  // a forked child's copy does nothing
};

}  // namespace meshstage
