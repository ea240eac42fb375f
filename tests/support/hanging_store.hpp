// A Store whose calls hang while a test wants it.
#pragma once
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/comm/store.hpp>

namespace meshstage::test {

/// Passes every call on to another store; between hang() and go_on() no call returns.
class HangingStore final : public Store {
 public:
  explicit HangingStore(std::shared_ptr<Store> inner) : inner_(std::move(inner)) {}
  void hang() { set(true); }
  void go_on() { set(false); }

  void set(const std::string& key, std::string_view value, Deadline deadline) override {
    pass();
    inner_->set(key, value, deadline);
  }
  std::optional<std::string> get(const std::string& key, Deadline deadline) override {
    pass();
    return inner_->get(key, deadline);
  }
  std::string compare_and_create(const std::string& key, std::string_view value,
                                 Deadline deadline) override {
    pass();
    return inner_->compare_and_create(key, value, deadline);
  }
  std::vector<std::string> list(const std::string& prefix, Deadline deadline) override {
    pass();
    return inner_->list(prefix, deadline);
  }
  void remove(const std::string& key, Deadline deadline) override {
    pass();
    inner_->remove(key, deadline);
  }
  std::string wait_for_any(std::span<const std::string> keys, Deadline deadline,
                           std::stop_token stop) override {
    pass();
    return inner_->wait_for_any(keys, deadline, std::move(stop));
  }

 private:
  void set(bool hangs) {
    const std::lock_guard lock(mutex_);
    hangs_ = hangs;
    changed_.notify_all();
  }
  void pass() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !hangs_; });
  }
  const std::shared_ptr<Store> inner_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool hangs_ = false;
};

}  // namespace meshstage::test
