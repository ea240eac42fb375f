#include <meshstage/core/replicate/asks.hpp>

#include <algorithm>

namespace meshstage::replicate {

void Asks::add(int from, int owner, exchange::Content content, ImageId id, const Shape& shape) {
  constexpr std::size_t kOpen = 2;
  auto& asks = asks_[{from, owner, content}];
  asks.emplace_back(id, shape);
  if (asks.size() > kOpen) asks.pop_front();
}

std::optional<Asks::Shape> Asks::take(int from, int owner, exchange::Content content, ImageId id) {
  const auto entry = asks_.find({from, owner, content});
  if (entry == asks_.end()) return std::nullopt;
  auto& asks = entry->second;
  const auto it =
      std::find_if(asks.begin(), asks.end(), [&](const auto& ask) { return ask.first == id; });
  if (it == asks.end()) return std::nullopt;
  const Shape shape = it->second;
  asks.erase(asks.begin(), it + 1);
  if (asks.empty()) asks_.erase(entry);
  return shape;
}

std::size_t Asks::size() const {
  std::size_t size = 0;
  for (const auto& [key, asks] : asks_) size += asks.size();
  return size;
}

}  // namespace meshstage::replicate
