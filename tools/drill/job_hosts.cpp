// What each host has, and what goes with it.
#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>

#include <meshstage/core/vault/listing.hpp>

#include "tools/drill/hosts.hpp"
#include "tools/drill/job.hpp"

namespace meshstage::tools::drill {
namespace {

/// The job's vaults there that no process has: that rank's, or all.
void wipe(const std::filesystem::path& directory, const std::string& job, std::optional<int> rank) {
  for (const auto& vault : list_vaults(directory)) {
    if (vault.job == job && (!rank || vault.rank == *rank) && !vault.owner_alive) {
      remove_vault(vault);
    }
  }
}

}  // namespace

/// Of the host that the rank sits on.
const std::filesystem::path& Job::vault_of(int rank) const {
  if (options_.vaults.size() == 1) return options_.vaults.front();  // all hosts see it
  return options_.vaults[static_cast<std::size_t>(host_of(options_.arguments, rank, moved_))];
}

/// Of JobOptions::disks, that of the host that the rank sits on.
int Job::disk_of(int rank) const {
  return options_.disks.size() == 1 ? 0 : host_of(options_.arguments, rank, moved_);
}

void Job::wipe_vault(std::optional<int> rank) const {
  if (rank) return wipe(vault_of(*rank), options_.name, rank);
  for (const auto& directory : options_.vaults) wipe(directory, options_.name, {});
}

/// All processes of the rank's host that were to go down have done so. Where hosts have no disks of
/// their own no rank waits for that.
bool Job::host_is_down(const Seat& seat) const {
  if (options_.disks.size() == 1) return true;
  return std::none_of(seats_.begin(), seats_.end(), [&](const auto& other) {
    return disk_of(other->rank) == disk_of(seat.rank) && other->death > 0 && other->process;
  });
}

/// The rank's host is lost: its disk and all vaults go, before the first replacement is there.
void Job::lose_host(const Seat& seat) {
  if (options_.disks.size() == 1) return;
  const int lost = disk_of(seat.rank);
  const bool replaced = std::any_of(seats_.begin(), seats_.end(), [&](const auto& other) {
    return disk_of(other->rank) == lost && other->process;
  });
  if (replaced) return;
  wipe(vault_of(seat.rank), options_.name, {});
  const auto& directory = options_.disks[static_cast<std::size_t>(lost)];
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    std::filesystem::remove_all(entry.path());
  }
  for (auto& [files, writers] : persisted_) {
    std::erase_if(writers, [&](const auto& writer) { return writer.second == lost; });
  }
}

}  // namespace meshstage::tools::drill
