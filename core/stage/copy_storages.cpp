#include <meshstage/core/memory/copy_parts.hpp>
#include <meshstage/core/memory/resource.hpp>
#include <meshstage/core/stage/copy_storages_impl.hpp>

namespace meshstage::detail {

static_assert(kHugePageBytes <= kPaceBytes, "a pace is asked for each piece");

void copy_storages(std::span<const Storage> from, std::span<const Storage> to, Watermark& progress,
                   const CopyOptions& how) {
  CopyParts parts;
  for (const Storage& storage : to) parts.add(storage.bytes());
  parts.run(how.crew, how.hands, [&](const CopyParts::Piece& piece) {
    if (how.pace != nullptr) how.pace->before(piece.bytes, progress);
    progress.throw_if_failed();
    fast_copy(piece.of(to[piece.range].bytes()), piece.of(from[piece.range].bytes()), piece.hint);
  });
}

}  // namespace meshstage::detail
