#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/persistence.hpp>
#include <meshstage/core/replicate/slots.hpp>

namespace meshstage::replicate {

/// Writes complete steps to disk and removes older files (`ms-persist`). A disk that hangs keeps
/// the slots that are being written, and nothing else: see Slots::stuck(). Threads: the loop's.
class Persister {
 public:
  Persister(Engine& engine, Slots& slots, const Persistence& files);

  /// A step is complete; every n-th goes to disk, from the slots that hold it. From this call on
  /// those slots are held. Feeds Persisted once all of it is on disk.
  void complete(ImageId id);
  void prune(ImageId older_than);
  /// A generation begins: its first complete step goes to disk.
  void enter() { complete_in_generation_ = 0; }
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
  std::uint64_t complete_in_generation_ = 0;
  Worker worker_;
};

}  // namespace meshstage::replicate
