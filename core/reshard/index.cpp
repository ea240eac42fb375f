#include <meshstage/core/reshard/index_impl.hpp>

namespace meshstage::detail {

OldIndex::OldIndex(std::span<const Value> old, const BoxReaders& readers)
    : readers_(readers), ranks_(static_cast<int>(old.size())) {
  for (int rank = 0; rank < ranks_; ++rank) {
    Walk walk;
    add(rank, old[static_cast<std::size_t>(rank)], walk);
  }
}

void OldIndex::add(int rank, const Value& value, Walk& walk) {
  const auto [it, first] = places_.try_emplace(walk.path().text(), entries_.size());
  if (first) {
    paths_.push_back(it->first);
    entries_.emplace_back();
  }
  entries_[it->second].values.push_back({rank, value});
  if (const Dict* attributes = value.attributes()) {
    walk.below_attributes([&] { add(rank, Value(*attributes), walk); });
  }
  const auto* node = value.get_if<NodePtr>();
  if (!value.is_container() && node == nullptr) return;
  if (node != nullptr && readers_.contains((*node)->type_name())) return;
  walk.open(container_identity(value), [&] {
    for_each_below(value, [&](const Key& key, const Value& inner) {
      walk.below(key, [&] { add(rank, inner, walk); });
    });
  });
}

const std::vector<OldValue>* OldIndex::take(const std::string& path) {
  const auto it = places_.find(path);
  if (it == places_.end()) return nullptr;
  entries_[it->second].taken = true;
  return &entries_[it->second].values;
}

void OldIndex::pass_below(const std::string& path,
                          const std::function<bool(const std::string&)>& passes) {
  const std::string begin = path.empty() ? path : path + ".";
  for (std::size_t i = 0; i < paths_.size(); ++i) {
    if (paths_[i].starts_with(begin) && passes(paths_[i])) entries_[i].taken = true;
  }
}

std::string OldIndex::left() const {
  for (std::size_t i = 0; i < paths_.size(); ++i) {
    const Entry& entry = entries_[i];
    if (!entry.taken && static_cast<int>(entry.values.size()) == ranks_) return paths_[i];
  }
  return {};
}

std::vector<OfSome> OldIndex::of_some() const {
  std::vector<OfSome> found;
  for (std::size_t i = 0; i < paths_.size(); ++i) {
    const Entry& entry = entries_[i];
    if (static_cast<int>(entry.values.size()) == ranks_) continue;
    found.push_back({paths_[i], entry.taken});
  }
  return found;
}

std::optional<std::pair<std::string, int>> OldIndex::lacking() const {
  for (std::size_t i = 0; i < paths_.size(); ++i) {
    const auto& values = entries_[i].values;
    if (static_cast<int>(values.size()) != ranks_) return std::pair(paths_[i], values.front().rank);
  }
  return std::nullopt;
}

}  // namespace meshstage::detail
