#include <condition_variable>
#include <map>
#include <mutex>

#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

struct InMemoryStore::State {
  std::mutex mutex;
  std::condition_variable_any changed;
  std::map<std::string, std::string> entries;
};

InMemoryStore::InMemoryStore() : state_(std::make_unique<State>()) {}
InMemoryStore::~InMemoryStore() = default;

void InMemoryStore::set(const std::string& key, std::string_view value) {
  check_key(key);
  const std::lock_guard lock(state_->mutex);
  state_->entries[key] = value;
  state_->changed.notify_all();
}

std::optional<std::string> InMemoryStore::get(const std::string& key) {
  check_key(key);
  const std::lock_guard lock(state_->mutex);
  const auto entry = state_->entries.find(key);
  if (entry == state_->entries.end()) return std::nullopt;
  return entry->second;
}

std::string InMemoryStore::compare_and_create(const std::string& key, std::string_view value) {
  check_key(key);
  const std::lock_guard lock(state_->mutex);
  const auto [entry, created] = state_->entries.emplace(key, value);
  if (created) state_->changed.notify_all();
  return entry->second;
}

std::vector<std::string> InMemoryStore::list(const std::string& prefix) {
  const std::lock_guard lock(state_->mutex);
  std::vector<std::string> keys;
  for (auto entry = state_->entries.lower_bound(prefix);
       entry != state_->entries.end() && entry->first.starts_with(prefix); ++entry) {
    keys.push_back(entry->first);
  }
  return keys;
}

void InMemoryStore::remove(const std::string& key) {
  check_key(key);
  const std::lock_guard lock(state_->mutex);
  state_->entries.erase(key);
}

std::string InMemoryStore::wait_for_any(std::span<const std::string> keys, Deadline deadline,
                                        std::stop_token stop) {
  std::unique_lock lock(state_->mutex);
  const std::string* value = nullptr;
  const auto there = [&] {
    for (const auto& key : keys) {
      const auto entry = state_->entries.find(key);
      if (entry == state_->entries.end()) continue;
      value = &entry->second;
      return true;
    }
    return false;
  };
  if (deadline.is_never()) {
    state_->changed.wait(lock, stop, there);
  } else {
    state_->changed.wait_until(lock, stop, deadline.time(), there);
  }
  if (value != nullptr) return *value;
  if (stop.stop_requested()) throw Cancelled("waiting in the store was given up");
  std::string text;
  for (const auto& key : keys) text += (text.empty() ? "" : ", ") + key;
  throw Timeout("not in the store by the deadline: " + text);
}

}  // namespace meshstage
