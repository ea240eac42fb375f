#include <condition_variable>
#include <map>
#include <mutex>

#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

struct InMemoryStore::State {
  std::mutex mutex;
  std::map<std::string, std::string> entries;
  /// By key: of a thousand ranks only those are woken that wait for what came.
  std::multimap<std::string, std::condition_variable_any*> waiting;

  void came(const std::string& key) const {
    const auto range = waiting.equal_range(key);
    for (auto w = range.first; w != range.second; ++w) w->second->notify_all();
  }
};

InMemoryStore::InMemoryStore() : state_(std::make_unique<State>()) {}
InMemoryStore::~InMemoryStore() = default;

void InMemoryStore::set(const std::string& key, std::string_view value) {
  check_key(key);
  const std::lock_guard lock(state_->mutex);
  state_->entries[key] = value;
  state_->came(key);
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
  if (created) state_->came(key);
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
  std::condition_variable_any changed;
  for (const auto& key : keys) state_->waiting.emplace(key, &changed);
  if (deadline.is_never()) {
    changed.wait(lock, stop, there);
  } else {
    changed.wait_until(lock, stop, deadline.time(), there);
  }
  for (const auto& key : keys) {
    const auto range = state_->waiting.equal_range(key);
    for (auto w = range.first; w != range.second;) {
      w = w->second == &changed ? state_->waiting.erase(w) : std::next(w);
    }
  }
  if (value != nullptr) return *value;
  if (stop.stop_requested()) throw Cancelled("waiting in the store was given up");
  throw_not_there("of this process", keys);
}

}  // namespace meshstage
