#pragma once
#include <memory>
#include <utility>

#include <meshstage/core/comm/store.hpp>

namespace meshstage {

/// A Store that passes every call on to another one. A subclass overrides only the calls that it
/// changes, and passes those on by a call of WrappedStore's function. Threads: any.
class WrappedStore : public Store {
 public:
  explicit WrappedStore(std::shared_ptr<Store> inner) : inner_(std::move(inner)) {}

  void set(const std::string& key, std::string_view value, Deadline deadline) override {
    before_call();
    inner_->set(key, value, deadline);
  }
  std::optional<std::string> get(const std::string& key, Deadline deadline) override {
    before_call();
    return inner_->get(key, deadline);
  }
  std::string compare_and_create(const std::string& key, std::string_view value,
                                 Deadline deadline) override {
    before_call();
    return inner_->compare_and_create(key, value, deadline);
  }
  std::vector<std::string> list(const std::string& prefix, Deadline deadline) override {
    before_call();
    return inner_->list(prefix, deadline);
  }
  void remove(const std::string& key, Deadline deadline) override {
    before_call();
    inner_->remove(key, deadline);
  }
  void wait_reachable(Deadline deadline, std::stop_token stop,
                      const Unanswered& unanswered) override {
    before_call();
    inner_->wait_reachable(deadline, std::move(stop), unanswered);
  }
  std::string wait_for_any(std::span<const std::string> keys, Deadline deadline,
                           std::stop_token stop) override {
    before_call();
    return inner_->wait_for_any(keys, deadline, std::move(stop));
  }

 private:
  /// Runs before each call is passed on. It may wait, or throw in place of the call.
  virtual void before_call() {}

  const std::shared_ptr<Store> inner_;
};

}  // namespace meshstage
