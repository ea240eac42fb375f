#pragma once
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include <meshstage/core/async/work.hpp>
#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/persistence.hpp>
#include <meshstage/core/replicate/results.hpp>
#include <meshstage/core/replicate/slots.hpp>

namespace meshstage::replicate {

/// Writes complete steps to disk and removes older files (`ms-persist`). A disk that hangs keeps
/// the slots that are being written, and nothing else: see Slots::stuck(). Threads: the loop's.
class Persister {
 public:
  Persister(Engine& engine, Slots& slots, const Persistence& files);

  /// A complete step goes to disk, from the slots that hold it. From this call on those slots are
  /// held. Feeds Persisted once all of it is on disk; `persisted` is told if that fails, or when
  /// all_on_disk() says that every rank has it.
  void persist(ImageId id, Promise<DiskOutcome> persisted = {});
  /// The job ends: the newest complete step goes to disk if it is not there yet. `done` is false if
  /// that failed.
  void persist_newest(Promise<bool> done);
  /// Every rank has that step on disk: older files go.
  void all_on_disk(ImageId id);
  /// The generation broke: nothing more is known of what is on its way.
  void lose(const std::exception_ptr& loss);
  /// Waits for what is being written, and drops the rest.
  void stop() { worker_.stop(); }

 private:
  [[nodiscard]] std::vector<SlotKey> slots_with(ImageId id) const;
  [[nodiscard]] bool write(SlotKey key, ImageId id);
  void written(ImageId id, const std::vector<SlotKey>& keys, bool good, double seconds,
               std::uint64_t generation);

  Engine& engine_;
  Slots& slots_;
  const Persistence& files_;
  std::map<ImageId, Promise<DiskOutcome>> waiting_;  ///< Not known yet to be on every disk.
  std::optional<Promise<bool>> newest_done_;         ///< Of persist_newest(), while it writes.
  ImageId written_;                                  ///< The newest that this rank has on disk.
  Worker worker_;
};

}  // namespace meshstage::replicate
