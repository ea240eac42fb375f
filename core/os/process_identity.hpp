#pragma once
#include <cstdint>
#include <string>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// Identifies a process, for people to read and for names that must not collide. It never decides
/// ownership, because process ids are reused and each container has its own; record locks decide
/// (see FileSystem).
struct ProcessIdentity {
  std::int64_t pid = 0;  ///< 0 = no process.
  /// Field 22 of /proc/PID/stat: clock ticks since boot; 0 = unknown.
  std::uint64_t start_time = 0;
  /// A random number that each process image draws once: exec draws a new one, a forked child keeps
  /// its parent's. So (pid, instance) names one process image for ever.
  std::uint64_t instance = 0;
  std::uint32_t uid = 0;  ///< The effective user.
  std::string boot_id;    ///< /proc/sys/kernel/random/boot_id; empty = unknown.
  std::string host;       ///< Host name.

  friend bool operator==(const ProcessIdentity&, const ProcessIdentity&) = default;
};

/// The identity of the calling process; after fork the child's own.
[[nodiscard]] MESHSTAGE_API ProcessIdentity this_process();

/// True if a process with this pid and start time runs on this host since this boot, as far as
/// /proc shows this process. For display only.
[[nodiscard]] MESHSTAGE_API bool is_alive(const ProcessIdentity& identity);

}  // namespace meshstage
