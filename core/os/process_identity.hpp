#pragma once
#include <cstdint>
#include <string>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// Which process this is, for people to read and for names that must not collide. Ownership is
/// never decided by it: a number is reused, a container has its own; record locks decide (see
/// FileSystem).
struct ProcessIdentity {
  std::int64_t pid = 0;  ///< 0 = nobody.
  std::uint64_t start_time =
      0;  ///< Field 22 of /proc/PID/stat: clock ticks since boot; 0 = unknown.
  /// Drawn at random once by each process image: exec draws a new one, a forked child keeps its
  /// parent's. So (pid, instance) is one process image, and nothing else, ever.
  std::uint64_t instance = 0;
  std::uint32_t uid = 0;  ///< The effective user.
  std::string boot_id;    ///< /proc/sys/kernel/random/boot_id; empty = unknown.
  std::string host;       ///< Host name.

  friend bool operator==(const ProcessIdentity&, const ProcessIdentity&) = default;
};

/// Of the calling process; after fork the child's own.
[[nodiscard]] MESHSTAGE_API ProcessIdentity this_process();

/// True if a process of this number and start time runs on this host since this boot, as far as
/// this process's view of /proc can tell. For display only.
[[nodiscard]] MESHSTAGE_API bool is_alive(const ProcessIdentity& identity);

}  // namespace meshstage
