#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "tools/process/process.hpp"

namespace meshstage::tools::hosts {

class Script;

/// The exit code of a program that was asked for such hosts, and cannot have them.
inline constexpr int kHostsUnusable = 3;

/// The text says why this machine cannot have hosts as namespaces, and what helps.
struct HostsUnusable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// How posix_spawn starts a process on a host.
struct Entry {
  std::vector<std::string> words;  ///< Before the program and its arguments.
  int pid_namespace = -1;          ///< For EnterPidNamespace, while posix_spawn is called.
};

/// The children that this thread starts are in that pid namespace, for as long as it lives.
class EnterPidNamespace {
 public:
  /// -1: in that of this process. Throws IoError.
  explicit EnterPidNamespace(int pid_namespace);
  EnterPidNamespace(const EnterPidNamespace&) = delete;
  EnterPidNamespace& operator=(const EnterPidNamespace&) = delete;
  ~EnterPidNamespace();

 private:
  Descriptor own_;
};

struct NamespaceOptions {
  int count = 1;                 ///< Of hosts, at most 200.
  std::filesystem::path folder;  ///< Exists; a few small files go there.
  std::uint64_t memory = 0;      ///< Size of each host's /dev/shm, in bytes.
  /// For each host, the directory that is its disk; empty: no host has one of its own.
  std::vector<std::filesystem::path> disks;
  std::filesystem::path disk;  ///< Exists; where a process of a host sees the host's disk.
};

/// Hosts that this machine plays. Each has a host name, an address (and the other hosts' names), a
/// boot id, a /dev/shm and process ids of its own, as Linux namespaces. A process of one host
/// reaches those of the others by the network alone: a bridge between the hosts, in a namespace of
/// its own, that leads nowhere else. Other files are those of this machine. A process that this one
/// starts on a host is its child, and it knows its process id, as of any other.
///
/// Needs CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_SYS_CHROOT, `unshare` and `nsenter` of util-linux,
/// and `ip` of iproute2. When this process ends, even by SIGKILL, the kernel ends the processes of
/// all hosts soon after; the namespaces go with them. Threads: one, the same for all calls.
class NamespaceHosts {
 public:
  /// Throws HostsUnusable, IoError.
  explicit NamespaceHosts(NamespaceOptions options);
  NamespaceHosts(const NamespaceHosts&) = delete;
  NamespaceHosts& operator=(const NamespaceHosts&) = delete;
  /// Every process that was started on a host must have been reaped.
  ~NamespaceHosts();

  [[nodiscard]] static std::string name_of(int host);  ///< "host-0"
  /// Valid until the host is lost.
  [[nodiscard]] Entry entry(int host) const;
  /// The host's /dev/shm, as this process sees it, until the host is lost.
  [[nodiscard]] std::filesystem::path shared_memory(int host) const;
  /// The host loses power: its memory is gone, none of its processes reaches the network any more,
  /// and the kernel ends them soon after. It boots again, with its name and its address. Throws
  /// IoError.
  void lose(int host);

 private:
  struct Host;
  void boot(int host);
  void connect(int host);
  /// Of a process of that host, in /proc.
  [[nodiscard]] std::filesystem::path process_files(int host) const;

  NamespaceOptions options_;
  std::unique_ptr<Script> bridge_;
  std::vector<Host> hosts_;
};

}  // namespace meshstage::tools::hosts
