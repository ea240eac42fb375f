#include <algorithm>
#include <vector>

#include <meshstage/core/image/copy.hpp>
#include <meshstage/core/memory/resource.hpp>
#include <meshstage/core/stage/copy_storages_impl.hpp>

namespace meshstage::detail {
namespace {

// What does not stay in the cache anyway is written past it, but for its small parts, and by
// several threads.
constexpr std::uint64_t kLarge = std::uint64_t{8} << 20U;
constexpr std::uint64_t kStreamed = 2048;
// What a thread does at a time: small storages together are at least kLeastPart. Pieces of large
// ones end where a huge page of the target does, so that no two threads touch a fresh page first.
constexpr std::uint64_t kLeastPart = std::uint64_t{1} << 20U;
constexpr std::uint64_t kPiece = kHugePageBytes;
static_assert(kPiece <= kPaceBytes);

struct Piece {
  std::size_t storage;
  std::uint64_t offset, bytes;
};

struct Pieces {
  std::vector<Piece> pieces;
  std::vector<std::size_t> parts;  // the first piece of each, and the end
};

Pieces cut(std::span<const Storage> to) {
  Pieces result;
  result.parts.push_back(0);
  std::uint64_t in_part = 0;
  for (std::size_t i = 0; i < to.size(); ++i) {
    const auto bytes = to[i].nbytes();
    for (std::uint64_t at = 0; at < bytes;) {
      const auto address = reinterpret_cast<std::uintptr_t>(to[i].data()) + at;
      const auto n = std::min<std::uint64_t>(bytes - at, kPiece - address % kPiece);
      result.pieces.push_back({i, at, n});
      at += n;
      in_part += n;
      if (in_part < kLeastPart) continue;
      result.parts.push_back(result.pieces.size());
      in_part = 0;
    }
  }
  if (in_part > 0) result.parts.push_back(result.pieces.size());
  return result;
}

}  // namespace

void copy_storages(std::span<const Storage> from, std::span<const Storage> to, Watermark& progress,
                   const CopyOptions& how) {
  const auto [pieces, parts] = cut(to);
  std::uint64_t all = 0;
  for (const auto& piece : pieces) all += piece.bytes;
  const auto copy_part = [&, &ours = pieces, &begins = parts](std::size_t part) {
    for (auto i = begins[part]; i < begins[part + 1]; ++i) {
      const auto& [storage, offset, bytes] = ours[i];
      if (how.pace != nullptr) how.pace->before(bytes, progress);
      progress.throw_if_failed();
      copy_bytes(to[storage].bytes().subspan(offset, bytes),
                 from[storage].bytes().subspan(offset, bytes), all >= kLarge && bytes >= kStreamed);
    }
  };
  if (how.crew != nullptr && all >= kLarge) {
    how.crew->run(parts.size() - 1, copy_part, how.hands);
  } else {
    for (std::size_t i = 0; i + 1 < parts.size(); ++i) copy_part(i);
  }
}

}  // namespace meshstage::detail
