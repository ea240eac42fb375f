#pragma once
#include <exception>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/replicate/engine.hpp>

namespace meshstage::replicate {

/// The slot of a pair of `owner`'s images, or replicas, that has that one sealed.
[[nodiscard]] std::optional<SlotKey> sealed_slot(int owner, const protocol::SlotPair& pair,
                                                 ImageId id);

/// Who uses which slot of the vault, and room in it. The loop keeps the book; whatever asks the
/// vault for memory or files runs on a thread of its own (`ms-slots`), because room for a large
/// image takes seconds.
/// Threads: the loop's.
class Slots {
 public:
  explicit Slots(Engine& engine);

  /// A slot that is used is not given to another image.
  void hold(SlotKey key) { ++users_[key].others; }
  void release(SlotKey key);
  /// The same while the slot is written to disk, which may hang: stuck() then says so.
  void hold_for_disk(SlotKey key);
  void release_from_disk(SlotKey key);
  [[nodiscard]] bool in_use(SlotKey key) const { return users_.contains(key); }
  [[nodiscard]] bool any_in_use() const { return !users_.empty(); }
  /// Why it is no use to wait for that slot: it has been written to disk for longer than half of
  /// the deadline. The step that needs it fails, and the other ranks go on within their deadline.
  [[nodiscard]] std::optional<std::string> stuck(SlotKey key) const;

  /// Runs `attempt` now, and again after each change of the book, until it returns true.
  void when_free(std::function<bool()> attempt);
  void retry();
  void forget_waiting() { waiting_.clear(); }
  /// The generation is over: only the disk still uses slots.
  void leave();

  /// Marks a free slot WRITING and makes room for `bytes` of that image, on ms-slots. Then `then`
  /// runs on the loop, with the lease or with what Vault::begin_write threw. A lease that it does
  /// not take is given back.
  using Then = std::function<void(WriteLease& lease, const std::exception_ptr& error)>;
  void begin_write(SlotKey key, ImageIdentity identity, std::uint64_t bytes, Then then);
  /// Gives a lease back, on ms-slots.
  void give_back(WriteLease lease);
  /// Runs `task` on ms-slots behind what was asked before. `task` keeps no generation from ending.
  void post(std::function<void()> task) { worker_.post(std::move(task)); }
  void stop() { worker_.stop(); }

 private:
  struct Users {
    int others = 0, disk = 0;
    Deadline::Clock::time_point disk_since{};
  };
  void drop_if_unused(SlotKey key);
  [[nodiscard]] Deadline patience_with(const Users& users) const;

  Engine& engine_;
  std::map<SlotKey, Users> users_;
  std::vector<std::function<bool()>> waiting_;
  Worker worker_;
};

}  // namespace meshstage::replicate
