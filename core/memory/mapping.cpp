#include <meshstage/core/memory/mapping.hpp>

namespace meshstage {

Mapping::Mapping(File& file, std::uint64_t length, MapAccess access, bool forkable)
    : region_(file.map(length, access)) {
  if (!forkable) region_->exclude_from_forks();
  region_->exclude_from_dumps();
}

}  // namespace meshstage
