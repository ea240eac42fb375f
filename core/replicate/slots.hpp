#pragma once
#include <exception>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/async/work.hpp>
#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/vault_calls.hpp>
#include <meshstage/core/transfer/kept.hpp>

namespace meshstage::replicate {

/// Of the pair of slots for `owner`'s images or replicas the one that has image `id` sealed.
[[nodiscard]] std::optional<SlotKey> sealed_slot(int owner, const protocol::SlotPair& pair,
                                                 ImageId id);

/// Keeps account of the users of each slot of the vault. Posts the vault's slow calls (vault_calls)
/// to a thread of their own (`ms-slots`), because making room for a large image takes seconds.
/// Threads: the loop's.
class Slots {
 public:
  explicit Slots(Engine& engine);

  /// Counts a user of the slot. A slot with users is not given to another image.
  void hold(SlotKey key) { ++users_[key].others; }
  void release(SlotKey key);
  void release(std::span<const SlotKey> keys);
  /// For Trainer::held(): holds the slots of a ward's replica of the newest complete step and, if
  /// this rank has it, of its own image of that step. `held` gets the slots, the generation's loss,
  /// or NotFound.
  void hold_replica(int ward, Promise<std::vector<SlotKey>> held);
  /// hold() for the time in which the slots are written to disk. That may hang: see stuck(). Holds
  /// none of the slots if it throws (no memory).
  void hold_for_disk(std::span<const SlotKey> keys);
  /// Releases all of the slots, also if an attempt of when_free() throws.
  void release_from_disk(std::span<const SlotKey> keys);
  [[nodiscard]] bool in_use(SlotKey key) const { return users_.contains(key); }
  [[nodiscard]] bool any_in_use() const { return !users_.empty(); }
  /// Returns a text if the slot has been written to disk for longer than half of the deadline. Then
  /// the step that needs the slot fails at once, so that the other ranks go on within their
  /// deadline.
  [[nodiscard]] std::optional<std::string> stuck(SlotKey key) const;

  /// Runs `attempt` now, and again after each change of the users, until it returns true.
  void when_free(std::function<bool()> attempt);
  void retry();
  void forget_waiting() { waiting_.clear(); }
  /// Called when the generation is over: only the disk still uses slots.
  void leave();

  /// Begins an image in a free slot (begin_image), on ms-slots. Then `then` runs on the loop, with
  /// the lease or with the exception; with neither, the image is there, sealed. A lease that `then`
  /// does not take is given back.
  using Then = std::function<void(WriteLease& lease, const std::exception_ptr& error)>;
  void begin_write(WantedImage wanted, Then then);
  /// Returns the blocks that this process received into the slot and proved, once: for the next
  /// image that is written there. begin_write() forgets blocks that nobody took. So does leave(),
  /// because each recovery proves every slot anew.
  [[nodiscard]] transfer::HeldBlocks take_held(SlotKey key);
  void remember_held(SlotKey key, transfer::HeldBlocks held);
  /// Gives a lease back, on ms-slots.
  void give_back(WriteLease lease);
  /// Runs `task` on ms-slots behind the tasks before it. A generation may end before the task does.
  void post(std::function<void()> task) { worker_.post(std::move(task)); }

 private:
  struct Users {
    int others = 0, disk = 0;
    Deadline::Clock::time_point disk_since{};
  };
  /// begin_image() has ended.
  void began(SlotKey key, const BegunImage& begun, const Then& then);
  /// Returns whether nobody uses it now.
  [[nodiscard]] bool drop_if_unused(SlotKey key) noexcept;
  [[nodiscard]] Deadline patience_with(const Users& users) const;

  Engine& engine_;
  std::map<SlotKey, Users> users_;
  std::map<SlotKey, transfer::HeldBlocks> held_;
  std::vector<std::function<bool()>> waiting_;
  Worker worker_;
};

}  // namespace meshstage::replicate
