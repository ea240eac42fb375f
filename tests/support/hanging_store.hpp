// A Store whose calls hang, or fail, while a test wants it.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include <meshstage/core/comm/wrapped_store.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::test {

/// Passes every call on to another store. From hang() to go_on() no call returns; from fail() to
/// go_on() each throws IoError, as where the server is gone.
class HangingStore final : public WrappedStore {
 public:
  using WrappedStore::WrappedStore;
  void hang() { become(State::kHangs); }
  void fail() { become(State::kFails); }
  void go_on() { become(State::kWorks); }

 private:
  enum class State : std::uint8_t { kWorks, kHangs, kFails };
  void become(State state) {
    const std::lock_guard lock(mutex_);
    state_ = state;
    changed_.notify_all();
  }
  void before_call() override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return state_ != State::kHangs; });
    if (state_ == State::kFails) throw IoError("the store is gone");
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  State state_ = State::kWorks;
};

}  // namespace meshstage::test
