#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include <meshstage/core/os/file_system.hpp>

namespace meshstage {

/// How many processors this thread, and the threads that it starts, may keep busy.
struct AvailableProcessors {
  unsigned allowed = 1;  ///< Processors that the calling thread may run on (its affinity).
  /// Quota of the tightest control group around this process (version 1 or 2), in processors; the
  /// system throttles a group that uses more. Nothing if no group has a quota.
  std::optional<double> quota;
  std::string cgroup;  ///< The directory of that group.

  /// Threads that can be busy at once without being throttled, at least 1.
  [[nodiscard]] unsigned count() const noexcept {
    if (!quota || *quota >= allowed) return allowed;
    return *quota < 1 ? 1 : static_cast<unsigned>(*quota);
  }
};

/// Reads /proc and /sys through `fs`, so that a test can provide them. Where /proc does not tell
/// the affinity, `allowed` counts every processor of the machine.
[[nodiscard]] MESHSTAGE_API AvailableProcessors
available_processors(FileSystem& fs = real_file_system());

}  // namespace meshstage
