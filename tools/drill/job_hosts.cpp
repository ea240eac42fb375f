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

int Job::host_of(int rank) const { return drill::host_of(options_.arguments, rank, seating_); }

/// The ranks on that rank's host.
int Job::ranks_beside(int rank) const {
  return static_cast<int>(std::count_if(seats_.begin(), seats_.end(), [&](const auto& seat) {
    return host_of(seat->rank) == host_of(rank);
  }));
}

/// Of every host, as this process sees them.
std::vector<std::filesystem::path> Job::all_vaults() const {
  if (options_.hosts == nullptr) return options_.vaults;
  std::vector<std::filesystem::path> all;
  for (int host = 0; host < options_.arguments.host_count(); ++host) {
    all.push_back(options_.hosts->shared_memory(host));
  }
  return all;
}

/// Of the host that the rank sits on, as this process sees it.
std::filesystem::path Job::vault_of(int rank) const {
  const auto all = all_vaults();
  if (all.size() == 1) return all.front();  // all hosts see it
  return all[static_cast<std::size_t>(host_of(rank))];
}

/// Of JobOptions::disks, that of the host that the rank sits on.
int Job::disk_of(int rank) const { return options_.disks.size() == 1 ? 0 : host_of(rank); }

/// The same, as the rank sees it.
std::filesystem::path Job::disk_seen_by(int rank) const {
  const bool mounted = options_.hosts != nullptr && options_.disks.size() > 1;
  return mounted ? options_.disk_on_host : options_.disks[static_cast<std::size_t>(disk_of(rank))];
}

/// What that rank had in memory is gone, or what any rank had: its processes have been reaped. A
/// host of namespaces loses its memory with the host.
void Job::wipe_vault(std::optional<int> rank) {
  if (options_.hosts == nullptr) {
    if (rank) return wipe(vault_of(*rank), options_.name, rank);
    for (const auto& directory : options_.vaults) wipe(directory, options_.name, {});
  } else if (!rank) {
    for (int host = 0; host < options_.arguments.host_count(); ++host) lose_namespaces(host);
  }
}

/// The host boots anew; old processes that were still there have ended with it.
void Job::lose_namespaces(int host) {
  for (auto& zombie : zombies_) {
    if (zombie.host == host) zombie.lost_with_host = true;
  }
  options_.hosts->lose(host);
}

/// All processes of the rank's host that were to go down have done so. Where only a rank's memory
/// is lost no rank waits for that.
bool Job::host_is_down(const Seat& seat) const {
  if (!options_.arguments.hosts_go_whole()) return true;
  return std::none_of(seats_.begin(), seats_.end(), [&](const auto& other) {
    return host_of(other->rank) == host_of(seat.rank) && other->death > 0 && other->process;
  });
}

/// The rank's host is lost: its disk and all vaults go, before the first replacement is there.
void Job::lose_host(const Seat& seat) {
  if (!options_.arguments.hosts_go_whole()) return;
  const int lost = host_of(seat.rank);
  const bool replaced = std::any_of(seats_.begin(), seats_.end(), [&](const auto& other) {
    return host_of(other->rank) == lost && other->process;
  });
  if (replaced) return;
  if (options_.hosts != nullptr) {
    lose_namespaces(lost);
  } else {
    wipe(vault_of(seat.rank), options_.name, {});
  }
  if (options_.disks.size() == 1) return;
  const auto& directory = options_.disks[static_cast<std::size_t>(lost)];
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    std::filesystem::remove_all(entry.path());
  }
  for (auto& [files, writers] : persisted_) {
    std::erase_if(writers, [&](const auto& writer) { return writer.second == lost; });
  }
}

}  // namespace meshstage::tools::drill
