#pragma once
#include <atomic>
#include <cstdint>
#include <functional>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage::replicate {

/// The long waits of this rank's trainer in the collectives of one generation, and a count by which
/// such a wait sees that bytes of the collectives move anywhere in the job. CollectiveProgress sets
/// the count; where none watches it never rises. The trainer's group has it too, and may outlive
/// the engine.
/// Threads: any.
class MESHSTAGE_API CollectiveWaits {
 public:
  /// One wait that takes long, from construction to destruction.
  class MESHSTAGE_API Long {
   public:
    /// `waits` must outlive it.
    explicit Long(CollectiveWaits& waits) : waits_(waits) { waits_.change(1); }
    Long(const Long&) = delete;
    Long& operator=(const Long&) = delete;
    ~Long() { waits_.change(-1); }

   private:
    CollectiveWaits& waits_;
  };

  /// A transfer of the trainer's group is complete.
  void count_done() noexcept { done_.fetch_add(1, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t done() const noexcept {
    return done_.load(std::memory_order_relaxed);
  }
  /// While a Long is there, it rises with the bytes that any rank's collectives move.
  [[nodiscard]] std::uint64_t moved() const noexcept {
    return moved_.load(std::memory_order_relaxed);
  }
  void set_moved(std::uint64_t count) noexcept { moved_.store(count, std::memory_order_relaxed); }

  /// True while a Long is there.
  [[nodiscard]] bool any() const;
  /// Calls `begun` on the trainer's thread each time that a Long begins while there is no other. It
  /// must not throw, nor call this object. After watch(null) has returned nothing is called.
  void watch(std::function<void()> begun);

 private:
  void change(int by) noexcept;

  std::atomic<std::uint64_t> done_{0};
  std::atomic<std::uint64_t> moved_{0};
  mutable Mutex mutex_;
  int long_ MESHSTAGE_GUARDED_BY(mutex_) = 0;
  std::function<void()> begun_ MESHSTAGE_GUARDED_BY(mutex_);
};

}  // namespace meshstage::replicate
