#include <meshstage/core/vault/listing.hpp>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/vault/names_impl.hpp>
#include <meshstage/core/vault/state_impl.hpp>

#include <algorithm>
#include <cerrno>
#include <map>
#include <tuple>

namespace meshstage {

namespace {

using detail::ControlPage;
using detail::VaultFileKind;
using detail::VaultFileName;

/// What can happen to a file that other processes own: it goes, or was never for us.
bool is_not_for_us(const SystemError& e) {
  return detail::is_missing(e) || e.error_number() == EACCES || e.error_number() == ELOOP ||
         e.error_number() == ENXIO || e.error_number() == EISDIR;
}

/// Nothing for a file that is not for us.
std::optional<SlotInfo> read_slot(FileSystem& fs, const std::filesystem::path& path) {
  try {
    return detail::read_header(*detail::open_private(fs, path));
  } catch (const SystemError& e) {
    if (!is_not_for_us(e)) throw;
  } catch (const InvalidState&) {
    // another user's file under a name of ours
  }
  return std::nullopt;
}

/// Call with lock_files_mutex() held. `control`: of the same job and rank, if there is one.
bool is_owned(FileSystem& fs, const std::filesystem::path& lock_path, std::uint64_t incarnation,
              const std::optional<ControlPage>& control) {
  // Our own lock file must not be opened: closing it would give the lock away.
  if (control) {
    const auto mine = control->owned_by(fs.process());
    if (mine && mine->incarnation == incarnation) return true;
  }
  try {
    const auto file = detail::open_private(fs, lock_path);
    return file->lock_holder().has_value();
  } catch (const SystemError& e) {
    if (!is_not_for_us(e)) throw;
  } catch (const InvalidState&) {
    // another user's file under a name of ours: not a vault of ours
  }
  return false;
}

/// Nothing if there is none, or none that can be trusted.
std::optional<ControlPage> open_control(FileSystem& fs, const VaultListing& vault) {
  try {
    return ControlPage::open(
        fs, vault.directory / detail::control_name(vault.uid, vault.job, vault.rank));
  } catch (const InvalidState&) {  // another user's
  } catch (const CorruptData&) {   // attach() will say so; here the locks are enough
  }
  return std::nullopt;
}

std::filesystem::path lock_path_of(const VaultListing& v) {
  return v.directory / detail::lock_name(v.uid, v.job, v.rank, v.incarnation);
}

}  // namespace

std::vector<VaultListing> list_vaults(const std::filesystem::path& directory, FileSystem& fs) {
  const MutexLock lock(detail::lock_files_mutex());
  std::vector<VaultListing> vaults;
  if (!fs.stat(directory)) return vaults;
  const std::uint32_t uid = fs.process().uid;
  std::map<std::tuple<std::string, int, std::uint64_t>, VaultListing> found;
  for (const auto& file : fs.list(directory)) {
    const auto name = detail::parse_vault_name(file);
    if (!name || name->uid != uid || name->incarnation == 0 ||
        name->kind == VaultFileKind::kTemporary)
      continue;
    VaultListing& vault = found[{name->job, name->rank, name->incarnation}];
    vault.directory = directory;
    vault.uid = uid;
    vault.job = name->job;
    vault.rank = name->rank;
    vault.incarnation = name->incarnation;
    if (const auto stat = fs.stat(directory / file)) vault.bytes += stat->size;
    if (name->kind != VaultFileKind::kSlot) continue;
    if (auto info = read_slot(fs, directory / file))
      vault.slots.emplace_back(name->slot, std::move(*info));
  }
  for (auto& [key, vault] : found) {
    std::sort(vault.slots.begin(), vault.slots.end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    const auto control = open_control(fs, vault);
    vault.owner_alive = is_owned(fs, lock_path_of(vault), vault.incarnation, control);
    if (control) {
      if (const auto owner = control->owner(vault.incarnation)) vault.owner_pid = owner->pid;
    }
    vaults.push_back(std::move(vault));
  }
  for (std::size_t i = 0; i < vaults.size(); ++i) {
    const bool last = i + 1 == vaults.size() || vaults[i + 1].job != vaults[i].job ||
                      vaults[i + 1].rank != vaults[i].rank;
    vaults[i].newest = last;
  }
  return vaults;
}

std::uint64_t remove_vault(const VaultListing& vault, FileSystem& fs) {
  const MutexLock lock(detail::lock_files_mutex());
  const auto control = open_control(fs, vault);
  const auto lock_path = lock_path_of(vault);
  if (is_owned(fs, lock_path, vault.incarnation, control)) {
    throw make_error<InvalidState>(
        "the vault of job \"" + vault.job + "\", rank " + std::to_string(vault.rank) +
            ", incarnation " + std::to_string(vault.incarnation) + " in " +
            vault.directory.native() + " has a living owner; end that process first",
        vault.rank);
  }
  // Owned while it goes, so that nobody takes over what is half gone.
  std::unique_ptr<File> held;
  try {
    held = detail::open_private(fs, lock_path);
    if (!held->try_lock())
      throw InvalidState("the vault was taken over by another process just now");
  } catch (const SystemError& e) {
    if (!detail::is_missing(e)) throw;
  }
  std::uint64_t freed = 0;
  bool others = false;
  std::vector<std::filesystem::path> temporaries;
  for (const auto& file : fs.list(vault.directory)) {
    const auto name = detail::parse_vault_name(file);
    if (!name || name->uid != vault.uid || name->job != vault.job || name->rank != vault.rank)
      continue;
    const auto path = vault.directory / file;
    if (name->kind == VaultFileKind::kTemporary) {
      temporaries.push_back(path);
    } else if (name->kind == VaultFileKind::kControl) {
      continue;
    } else if (name->incarnation != vault.incarnation) {
      others = true;
    } else if (name->kind == VaultFileKind::kSlot) {
      const auto stat = fs.stat(path);
      if (fs.unlink(path) && stat) freed += stat->size;
    }
  }
  fs.unlink(lock_path);
  if (!others) {
    const auto path = vault.directory / detail::control_name(vault.uid, vault.job, vault.rank);
    if (const auto stat = fs.stat(path); stat && fs.unlink(path)) freed += stat->size;
    // Of attempts that died; a living one looks again when its own is gone.
    for (const auto& temporary : temporaries) fs.unlink(temporary);
  }
  return freed;
}

}  // namespace meshstage
