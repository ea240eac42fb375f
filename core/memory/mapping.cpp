#include <meshstage/core/memory/mapping.hpp>

#include <sys/mman.h>

#include <cerrno>

namespace meshstage {

Mapping::Mapping(File& file, std::uint64_t length, MapAccess access, bool forkable)
    : region_(file.map(length, access)) {
  if (!region_->is_file_backed()) return;  // ordinary memory of this process stays as it is
  const auto bytes = region_->bytes();
  if (!forkable && ::madvise(bytes.data(), bytes.size(), MADV_DONTFORK) != 0) {
    throw SystemError("madvise MADV_DONTFORK", "", errno);
  }
  if (::madvise(bytes.data(), bytes.size(), MADV_DONTDUMP) != 0) {
    throw SystemError("madvise MADV_DONTDUMP", "", errno);
  }
}

}  // namespace meshstage
