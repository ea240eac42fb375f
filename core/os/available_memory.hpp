#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include <meshstage/core/os/file_system.hpp>

namespace meshstage {

/// How much more memory this process can use before the machine or its control group runs out.
struct AvailableMemory {
  std::uint64_t mem_available = 0;  ///< MemAvailable of /proc/meminfo, in bytes.
  /// Headroom of the tightest control group (v1 or v2) that this process is in, in bytes: limit
  /// minus use, plus the inactive file pages, which the kernel would reclaim first. Nothing if no
  /// group has a limit.
  std::optional<std::uint64_t> cgroup_headroom;
  std::string cgroup;  ///< The directory of that group.

  [[nodiscard]] bool cgroup_binds() const noexcept {
    return cgroup_headroom && *cgroup_headroom < mem_available;
  }
  /// The smaller of the two.
  [[nodiscard]] std::uint64_t bytes() const noexcept {
    return cgroup_binds() ? *cgroup_headroom : mem_available;
  }
  /// The name of the limit that bytes() returns, in words.
  [[nodiscard]] MESHSTAGE_API std::string limit() const;
};

/// Reads /proc and /sys through `fs`, so that a test can provide them. Throws IoError if
/// /proc/meminfo has no MemAvailable.
[[nodiscard]] MESHSTAGE_API AvailableMemory available_memory(FileSystem& fs = real_file_system());

}  // namespace meshstage
