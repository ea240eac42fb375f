#include <algorithm>

#include <meshstage/core/image/copy.hpp>
#include <meshstage/core/stage/copy_storages_impl.hpp>

namespace meshstage::detail {

void copy_storages(std::span<const Storage> from, std::span<const Storage> to, Watermark& progress,
                   Pace* pace) {
  // What does not stay in the cache anyway is written past it, but for its small parts.
  constexpr std::uint64_t kLarge = std::uint64_t{8} << 20U;
  constexpr std::uint64_t kStreamed = 2048;
  std::uint64_t all = 0;
  for (const auto& storage : from) all += storage.nbytes();
  for (std::size_t i = 0; i < from.size(); ++i) {
    const auto bytes = from[i].bytes();
    for (std::uint64_t at = 0; at < bytes.size();) {
      const auto n = std::min<std::uint64_t>(bytes.size() - at, kPaceBytes);
      if (pace != nullptr) pace->before(n, progress);
      progress.throw_if_failed();
      copy_bytes(to[i].bytes().subspan(at, n), bytes.subspan(at, n),
                 all >= kLarge && n >= kStreamed);
      at += n;
    }
  }
}

}  // namespace meshstage::detail
