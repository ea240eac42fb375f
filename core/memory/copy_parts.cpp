#include <meshstage/core/memory/copy_parts.hpp>

#include <algorithm>
#include <cstdint>

#include <meshstage/core/memory/resource.hpp>

namespace meshstage {
namespace {

// What does not stay in the cache anyway is written past it, but for its small parts, and by
// several threads.
constexpr std::size_t kLarge = std::size_t{8} << 20U;
constexpr std::size_t kStreamed = 2048;
// What a thread does at a time: small ranges together are at least kLeastPart.
constexpr std::size_t kLeastPart = std::size_t{1} << 20U;

}  // namespace

void CopyParts::add(std::span<const std::byte> target) {
  for (std::size_t at = 0; at < target.size();) {
    const auto address = reinterpret_cast<std::uintptr_t>(target.data()) + at;
    const auto n = std::min(target.size() - at, kHugePageBytes - address % kHugePageBytes);
    pieces_.push_back({ranges_, at, n, CopyHint::kAuto});
    at += n;
    in_part_ += n;
    if (in_part_ < kLeastPart) continue;
    ends_.push_back(pieces_.size());
    in_part_ = 0;
  }
  bytes_ += target.size();
  ++ranges_;
}

bool CopyParts::is_large() const noexcept { return bytes_ >= kLarge; }

void CopyParts::run(Crew* crew, unsigned hands,
                    const std::function<void(const Piece&)>& copy) const {
  const bool large = is_large();
  const auto copy_part = [&](std::size_t part) {
    const auto end = part < ends_.size() ? ends_[part] : pieces_.size();
    for (auto i = part == 0 ? 0 : ends_[part - 1]; i < end; ++i) {
      Piece piece = pieces_[i];
      if (large && piece.bytes >= kStreamed) piece.hint = CopyHint::kStreaming;
      copy(piece);
    }
  };
  const std::size_t parts = ends_.size() + (in_part_ > 0 ? 1 : 0);
  if (crew != nullptr && large) return crew->run(parts, copy_part, hands);
  for (std::size_t part = 0; part < parts; ++part) copy_part(part);
}

}  // namespace meshstage
