#pragma once
#include <cstdint>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// The numbers by which other processes on its host find a process. They can be sent in a message.
struct ProcessAddress {
  /// Digest of the boot id, which names the host and its boot. 0 = unknown.
  std::uint64_t boot = 0;
  std::uint64_t pid_namespace =
      0;                 ///< Inode of the pid namespace, which names the container. 0 = unknown.
  std::int64_t pid = 0;  ///< In that namespace.
  std::uint64_t start_time = 0;  ///< As ProcessIdentity::start_time. 0 = unknown.

  friend bool operator==(const ProcessAddress&, const ProcessAddress&) = default;
};

/// The address of the calling process; after fork the child's own.
[[nodiscard]] MESHSTAGE_API ProcessAddress own_process_address();

/// The result of watch_process().
struct ProcessWatch {
  /// A descriptor that polls readable once the process has ended, even if others still hold its
  /// files and sockets. The caller closes it. -1: this process cannot watch that one.
  int descriptor = -1;
  /// True if the process was on this host and has ended already (then there is no descriptor).
  bool ended = false;
};

/// Watches a process by pidfd_open(2). Another process can be watched if it runs under this kernel
/// and in this process's pid namespace. Its start time must be the address's, so that a reused pid
/// is never mistaken for it. The descriptor is close-on-exec. Never throws: the end of a process
/// that cannot be watched is noticed by other means.
[[nodiscard]] MESHSTAGE_API ProcessWatch watch_process(const ProcessAddress& address) noexcept;

}  // namespace meshstage
