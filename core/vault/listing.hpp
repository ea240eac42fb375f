#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/vault/slot.hpp>

namespace meshstage {

/// One incarnation of a rank's vault, as found in a directory.
struct VaultListing {
  std::filesystem::path directory;
  std::uint32_t uid = 0;
  std::string job;
  int rank = 0;
  std::uint64_t incarnation = 0;
  bool newest = false;       ///< No newer incarnation of this job and rank is there.
  bool owner_alive = false;  ///< A process holds its lock.
  /// Of the living owner, else of the last one; 0 = unknown. For display.
  std::int64_t owner_pid = 0;
  std::vector<std::pair<SlotKey, SlotInfo>> slots;
  std::uint64_t bytes = 0;  ///< Of all its files.
};

/// The vaults of the calling user in `directory`, by job, rank, incarnation. Takes over no vault.
/// Skips files that vanish or cannot be read meanwhile. A directory that does not exist has no
/// vaults.
[[nodiscard]] MESHSTAGE_API std::vector<VaultListing> list_vaults(
    const std::filesystem::path& directory = "/dev/shm", FileSystem& fs = real_file_system());

/// Removes the files of one listed incarnation, and with the rank's last incarnation the control
/// file. Throws InvalidState if the owner is alive by now. Returns the bytes freed.
MESHSTAGE_API std::uint64_t remove_vault(const VaultListing& vault,
                                         FileSystem& fs = real_file_system());

}  // namespace meshstage
