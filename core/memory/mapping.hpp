#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <meshstage/core/os/file_system.hpp>

namespace meshstage {

/// Move-only owner of a shared mapping of a file. It is kept out of forked children (MADV_DONTFORK:
/// a data loader's copy-on-write bookkeeping never touches it; a child that does gets SIGSEGV) and
/// out of core dumps (MADV_DONTDUMP). The mapping outlives the File and the file's name.
class MESHSTAGE_API Mapping {
 public:
  Mapping() = default;
  /// Maps the first `length` bytes of `file`. `forkable` leaves the mapping to forked children (for
  /// files that are only read, whose tensors a data loader may use). Throws SystemError.
  Mapping(File& file, std::uint64_t length, MapAccess access, bool forkable = false);
  Mapping(Mapping&&) noexcept = default;
  Mapping& operator=(Mapping&&) noexcept = default;

  [[nodiscard]] bool valid() const noexcept { return region_ != nullptr; }
  /// Empty for a default-constructed or moved-from one.
  [[nodiscard]] std::span<std::byte> bytes() const noexcept {
    return region_ ? region_->bytes() : std::span<std::byte>();
  }

 private:
  std::unique_ptr<MappedRegion> region_;
};

}  // namespace meshstage
