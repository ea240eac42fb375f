#include <map>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

struct InMemoryStore::State {
  Mutex mutex;
  std::map<std::string, std::string> entries MESHSTAGE_GUARDED_BY(mutex);
  /// By key: of a thousand ranks only those are woken that wait for what came.
  std::multimap<std::string, CondVar*> waiting MESHSTAGE_GUARDED_BY(mutex);

  void came(const std::string& key) const MESHSTAGE_REQUIRES(mutex) {
    const auto range = waiting.equal_range(key);
    for (auto w = range.first; w != range.second; ++w) w->second->notify_all();
  }
};

InMemoryStore::InMemoryStore() : state_(std::make_unique<State>()) {}
InMemoryStore::~InMemoryStore() = default;

void InMemoryStore::set(const std::string& key, std::string_view value, Deadline /*deadline*/) {
  check_key(key);
  State& state = *state_;
  const MutexLock lock(state.mutex);
  state.entries[key] = value;
  state.came(key);
}

std::optional<std::string> InMemoryStore::get(const std::string& key, Deadline /*deadline*/) {
  check_key(key);
  State& state = *state_;
  const MutexLock lock(state.mutex);
  const auto entry = state.entries.find(key);
  if (entry == state.entries.end()) return std::nullopt;
  return entry->second;
}

std::string InMemoryStore::compare_and_create(const std::string& key, std::string_view value,
                                              Deadline /*deadline*/) {
  check_key(key);
  State& state = *state_;
  const MutexLock lock(state.mutex);
  const auto [entry, created] = state.entries.emplace(key, value);
  if (created) state.came(key);
  return entry->second;
}

std::vector<std::string> InMemoryStore::list(const std::string& prefix, Deadline /*deadline*/) {
  State& state = *state_;
  const MutexLock lock(state.mutex);
  std::vector<std::string> keys;
  for (auto entry = state.entries.lower_bound(prefix);
       entry != state.entries.end() && entry->first.starts_with(prefix); ++entry) {
    keys.push_back(entry->first);
  }
  return keys;
}

void InMemoryStore::remove(const std::string& key, Deadline /*deadline*/) {
  check_key(key);
  State& state = *state_;
  const MutexLock lock(state.mutex);
  state.entries.erase(key);
}

std::string InMemoryStore::wait_for_any(std::span<const std::string> keys, Deadline deadline,
                                        std::stop_token stop) {
  State& state = *state_;
  CondVar changed;
  MutexLock lock(state.mutex);
  const std::string* value = nullptr;
  const auto there = [&]() MESHSTAGE_REQUIRES(state.mutex) {
    for (const auto& key : keys) {
      const auto entry = state.entries.find(key);
      if (entry == state.entries.end()) continue;
      value = &entry->second;
      return true;
    }
    return false;
  };
  for (const auto& key : keys) state.waiting.emplace(key, &changed);
  (void)changed.wait_until(lock, stop, deadline, there);
  for (const auto& key : keys) {
    const auto range = state.waiting.equal_range(key);
    for (auto w = range.first; w != range.second;) {
      w = w->second == &changed ? state.waiting.erase(w) : std::next(w);
    }
  }
  if (value != nullptr) return *value;
  if (stop.stop_requested()) throw Cancelled("waiting in the store was given up");
  throw_not_there("of this process", keys);
}

}  // namespace meshstage
