#include "tools/drill/workspace.hpp"

#include <stdlib.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <exception>
#include <system_error>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/vault/listing.hpp>

namespace meshstage::tools::drill {
namespace fs = std::filesystem;
namespace {

constexpr const char* kSharedMemory = "/dev/shm";

// `given`: by --dir, which is then an argument that cannot be used.
[[noreturn]] void cannot_make(bool given, const std::string& path, int error) {
  if (!given) throw_errno("mkdir", path, error);
  throw InvalidArgument("--dir " + path + ": cannot be made or written to: " +
                        std::generic_category().message(error) +
                        "; name a directory with room for the run's files");
}

// Vaults that a failed run left in shared memory; a successful one leaves none.
void remove_vaults(const fs::path& directory, const std::string& jobs) {
  for (const auto& vault : list_vaults(directory)) {
    if (vault.job.starts_with(jobs)) remove_vault(vault);
  }
}

}  // namespace

Workspace::Workspace(const fs::path& parent) {
  std::error_code error;
  fs::path base = parent.empty() ? fs::temp_directory_path() : parent;
  if (fs::create_directories(base, error)) made_parent_ = base;
  if (error) cannot_make(!parent.empty(), base.string(), error.value());
  std::string pattern = (base / "drill-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) {
    const int failed = errno;
    if (!made_parent_.empty()) fs::remove(made_parent_, error);
    cannot_make(!parent.empty(), base.string(), failed);
  }
  path_ = pattern;
  name_ = path_.filename().string();
}

Workspace::~Workspace() {
  try {
    remove_vaults(kSharedMemory, name_);
    if (!keep_logs_) {
      fs::remove_all(path_);
      if (!made_parent_.empty()) fs::remove(made_parent_);  // only if it is empty
      return;
    }
    for (auto entry = fs::recursive_directory_iterator(path_);
         entry != fs::recursive_directory_iterator(); ++entry) {
      if (entry->is_regular_file() && entry->path().extension() != ".log") {
        std::error_code ignored;
        fs::remove(entry->path(), ignored);
      }
    }
  } catch (const std::exception& e) {
    ::fprintf(stderr, "meshstage drill: could not remove all of %s: %s\n", path_.c_str(), e.what());
  }
}

fs::path Workspace::make(const std::string& directory) const {
  const fs::path made = path_ / directory;
  fs::create_directory(made);
  fs::permissions(made, fs::perms::owner_all);
  return made;
}

fs::path Workspace::choose_vault(std::uint64_t bytes) {
  struct statvfs room{};
  if (::statvfs(kSharedMemory, &room) == 0 && ::access(kSharedMemory, W_OK) == 0 &&
      std::uint64_t{room.f_bavail} * room.f_frsize > bytes) {
    return kSharedMemory;
  }
  return make("vault");
}

}  // namespace meshstage::tools::drill
