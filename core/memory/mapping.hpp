#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <meshstage/core/os/file_system.hpp>

namespace meshstage {

/// Move-only owner of a shared mapping of a file. Forked children do not have the mapping
/// (MADV_DONTFORK), so a data loader's copy-on-write bookkeeping never touches it; a child that
/// accesses it gets SIGSEGV. Core dumps leave it out (MADV_DONTDUMP). The mapping outlives the File
/// and the file's name.
class MESHSTAGE_API Mapping {
 public:
  Mapping() = default;
  /// Maps the first `length` bytes of `file`. `forkable` leaves the mapping to forked children (for
  /// files that are only read, whose tensors a data loader may use). Throws SystemError.
  Mapping(File& file, std::uint64_t length, MapAccess access, bool forkable = false);
  Mapping(Mapping&&) noexcept = default;
  Mapping& operator=(Mapping&&) noexcept = default;

  [[nodiscard]] bool valid() const noexcept { return region_ != nullptr; }
  /// Empty if the Mapping was default-constructed or moved from.
  [[nodiscard]] std::span<std::byte> bytes() const noexcept {
    return region_ ? region_->bytes() : std::span<std::byte>();
  }

 private:
  std::unique_ptr<MappedRegion> region_;
};

}  // namespace meshstage
