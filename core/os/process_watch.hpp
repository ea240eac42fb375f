#pragma once
#include <cstdint>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// Where a process is to be found by others on its host. Plain numbers, so that it can be sent.
struct ProcessAddress {
  std::uint64_t boot = 0;           ///< Digest of the boot id: which host, since when. 0 = unknown.
  std::uint64_t pid_namespace = 0;  ///< Its inode: in which container. 0 = unknown.
  std::int64_t pid = 0;             ///< In that namespace.
  std::uint64_t start_time = 0;     ///< As ProcessIdentity::start_time. 0 = unknown.

  friend bool operator==(const ProcessAddress&, const ProcessAddress&) = default;
};

/// Of the calling process; after fork the child's own.
[[nodiscard]] MESHSTAGE_API ProcessAddress own_process_address();

/// What became of an attempt to watch a process.
struct ProcessWatch {
  /// A descriptor that polls readable once the process has ended, whoever still holds its files
  /// and sockets: the caller's to close. -1: it cannot be watched from here.
  int descriptor = -1;
  /// It was on this host and is gone already (then there is no descriptor).
  bool ended = false;
};

/// Watches a process by pidfd_open(2). It can be watched if it runs under this kernel, in this
/// process's pid namespace, and is another process than this; and if its start time is what the
/// address says, so that a reused number is never mistaken for it. Close-on-exec. Never throws:
/// what cannot be watched is noticed by other means.
[[nodiscard]] MESHSTAGE_API ProcessWatch watch_process(const ProcessAddress& address) noexcept;

}  // namespace meshstage
