// A Store whose calls hang while a test wants it.
#pragma once
#include <condition_variable>
#include <mutex>

#include <meshstage/core/comm/wrapped_store.hpp>

namespace meshstage::test {

/// Passes every call on to another store; between hang() and go_on() no call returns.
class HangingStore final : public WrappedStore {
 public:
  using WrappedStore::WrappedStore;
  void hang() { set_hangs(true); }
  void go_on() { set_hangs(false); }

 private:
  void set_hangs(bool hangs) {
    const std::lock_guard lock(mutex_);
    hangs_ = hangs;
    changed_.notify_all();
  }
  void before_call() override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !hangs_; });
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  bool hangs_ = false;
};

}  // namespace meshstage::test
