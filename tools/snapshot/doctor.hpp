#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <meshstage/core/memory/room.hpp>
#include <meshstage/core/os/file_system.hpp>

#include "tools/snapshot/snapshot.hpp"

namespace meshstage::tools {

/// What doctor looks at.
struct HostFacts {
  static constexpr std::uint64_t kUnlimited = UINT64_MAX;
  RoomLimits room;  ///< Memory, and the file system of the vault's directory.
  std::uint64_t memory_total = 0;
  bool vault_exists = false;    ///< And is a directory.
  bool vault_is_other = false;  ///< A file, for example.
  bool vault_writable = false;
  std::string huge_pages;         ///< The chosen word of transparent_hugepage/enabled, or empty.
  std::string shared_huge_pages;  ///< Of .../shmem_enabled, or empty.
  /// Soft and hard limits; kUnlimited for none.
  std::uint64_t memlock_soft = 0, memlock_hard = 0;  // bytes
  std::uint64_t files_soft = 0, files_hard = 0;      // descriptors
  std::uint64_t file_size_soft = kUnlimited;         // bytes
  std::uint32_t uid = 0;
  bool logind = false;             ///< systemd-logind runs here.
  std::optional<bool> remove_ipc;  ///< What logind.conf says; nothing if it says nothing.
  std::map<std::string, std::string> environment;
  std::string own_address;  ///< Where other hosts reach this one; empty where `host_error` is not.
  std::string host_error;   ///< Why MESHSTAGE_HOST, or what this host has, cannot be used.
  std::string store_error;  ///< Why the store of MESHSTAGE_STORE cannot be used; empty: it can be.
  bool store_silent = false;                            ///< Because nobody answers (yet).
  std::uint64_t dead_vaults = 0, dead_vault_bytes = 0;  ///< Of jobs without a living rank.
};
/// Reads them, /proc and /sys through `fs`.
HostFacts read_host(FileSystem& fs, const std::filesystem::path& vault);

struct Check {
  enum class Level : std::uint8_t { kOk, kWarning, kProblem };
  std::string name;
  Level level = Level::kOk;
  std::string text;    ///< What was found.
  std::string remedy;  ///< Empty if all is well.
};
/// Pure.
std::vector<Check> diagnose(const HostFacts& facts, const DoctorOptions& options);

}  // namespace meshstage::tools
