// Holds copying where a test wants it, with no regard to time.
#pragma once
#include <condition_variable>
#include <mutex>

#include <meshstage/core/stage/pace.hpp>

namespace meshstage::test {

/// A pace that lets nothing pass until it is opened. Counts what is asked for.
class Gate final : public Pace {
 public:
  explicit Gate(bool open = false) : open_(open) {}
  void before(std::uint64_t bytes, Watermark& progress) override {
    std::unique_lock lock(mutex_);
    ++pieces_;
    bytes_ += bytes;
    largest_ = std::max(largest_, bytes);
    changed_.notify_all();
    // A failure of `progress` does not wake us: it is looked at now and then.
    while (!open_ && !progress.failed()) changed_.wait_for(lock, std::chrono::milliseconds(1));
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void close() {
    const std::lock_guard lock(mutex_);
    open_ = false;
    pieces_ = 0;
  }
  /// Until a copy has come to the gate since it was made or closed.
  void wait_for_a_piece() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return pieces_ > 0; });
  }
  [[nodiscard]] std::uint64_t bytes() const {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }
  [[nodiscard]] std::uint64_t largest() const {
    const std::lock_guard lock(mutex_);
    return largest_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool open_;
  std::uint64_t pieces_ = 0, bytes_ = 0, largest_ = 0;
};

}  // namespace meshstage::test
