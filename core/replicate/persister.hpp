#pragma once
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include <meshstage/core/async/work.hpp>
#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/replicate/disk_calls.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/persistence.hpp>
#include <meshstage/core/replicate/results.hpp>
#include <meshstage/core/replicate/slots.hpp>

namespace meshstage::replicate {

/// Has complete steps written to disk and older files removed, on a thread of its own
/// (`ms-persist`; see disk_calls). A disk that hangs holds only the slots that are being written:
/// see Slots::stuck().
/// Threads: the loop's.
class Persister {
 public:
  Persister(Engine& engine, Slots& slots, const Persistence& files);

  /// Writes a complete step to disk, from the slots that have it; from this call on those slots are
  /// held. Feeds Persisted once the whole step is on disk. `persisted` gets its value if writing
  /// fails, or when all_on_disk() says that every rank has the step.
  void persist(ImageId id, Promise<DiskOutcome> persisted = {});
  /// At the end of the job: writes the newest complete step to disk unless it is there already.
  /// `done` becomes false if that fails.
  void persist_newest(Promise<bool> done);
  /// Called when every rank has step `id` on disk: removes older files.
  void all_on_disk(ImageId id);
  /// Called when the generation broke: promises of steps whose outcome on disk is open get the
  /// loss.
  void lose(const std::exception_ptr& loss);
  /// Waits for the image that is being written, and drops the rest. Threads: any but the loop's.
  void stop() { worker_.stop(); }

 private:
  [[nodiscard]] std::vector<SlotKey> slots_with(ImageId id) const;
  void written(ImageId id, const std::vector<SlotKey>& keys, const WrittenStep& result,
               std::uint64_t generation);

  Engine& engine_;
  Slots& slots_;
  const Persistence& files_;
  std::map<ImageId, Promise<DiskOutcome>>
      waiting_;                               ///< Steps not yet known to be on every rank's disk.
  std::optional<Promise<bool>> newest_done_;  ///< Of persist_newest(), while it writes.
  ImageId written_;                           ///< The newest step that this rank has on disk.
  Worker worker_;
};

}  // namespace meshstage::replicate
