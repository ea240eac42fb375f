#include <algorithm>

#include <meshstage/core/device/pinned_ranges_impl.hpp>

namespace meshstage::detail {

void PinnedRanges::add(std::span<std::byte> piece, std::uint64_t address) {
  const MutexLock lock(mutex_);
  pieces_.insert_or_assign(piece.data(), Piece{piece.size(), address});
}

void PinnedRanges::remove(std::span<std::byte> piece) {
  const MutexLock lock(mutex_);
  pieces_.erase(piece.data());
}

std::optional<PinnedRanges::Part> PinnedRanges::in_one_piece(
    std::span<const std::byte> bytes) const {
  const MutexLock lock(mutex_);
  auto piece = pieces_.upper_bound(bytes.data());
  if (piece == pieces_.begin()) return std::nullopt;
  --piece;
  const auto inside = static_cast<std::uint64_t>(bytes.data() - piece->first);
  if (inside + bytes.size() > piece->second.bytes) return std::nullopt;
  return Part{const_cast<std::byte*>(bytes.data()), bytes.size(), piece->second.address + inside};
}

std::vector<PinnedRanges::Part> PinnedRanges::parts(std::span<const std::byte> bytes) const {
  std::vector<Part> parts;
  const MutexLock lock(mutex_);
  const std::byte* at = bytes.data();
  const std::byte* const end = at + bytes.size();
  auto next = pieces_.upper_bound(at);
  if (next != pieces_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second.bytes > at) next = before;
  }
  while (at != end) {
    std::byte* const begin = const_cast<std::byte*>(at);  // as the caller's copy has it
    if (next == pieces_.end() || next->first >= end) {
      parts.push_back({begin, static_cast<std::uint64_t>(end - at), 0});
      break;
    }
    if (at < next->first) {
      parts.push_back({begin, static_cast<std::uint64_t>(next->first - at), 0});
      at = next->first;
      continue;
    }
    const auto inside = static_cast<std::uint64_t>(at - next->first);
    const auto n = std::min(next->second.bytes - inside, static_cast<std::uint64_t>(end - at));
    parts.push_back({begin, n, next->second.address + inside});
    at += n;
    ++next;
  }
  return parts;
}

bool PinnedRanges::contains(std::span<const std::byte> bytes) const {
  const auto all = parts(bytes);
  return !all.empty() &&
         std::all_of(all.begin(), all.end(), [](const Part& part) { return part.pinned(); });
}

}  // namespace meshstage::detail
