#pragma once
#include <cstdint>
#include <filesystem>
#include <string>

namespace meshstage::tools::drill {

/// A fresh directory for one drill, and the vaults of its jobs. The destructor removes all of it.
class Workspace {
 public:
  /// Below `parent`, or below the temporary directory if it is empty. Throws IoError.
  explicit Workspace(const std::filesystem::path& parent);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  /// Unique on this host; jobs of this drill begin with it.
  [[nodiscard]] const std::string& name() const { return name_; }
  /// Makes a directory of that name below path().
  std::filesystem::path make(const std::string& directory) const;
  /// /dev/shm if it has room for that many bytes, else a directory below path().
  std::filesystem::path choose_vault(std::uint64_t bytes);
  /// Leaves the logs where they are when it is destroyed.
  void keep_logs() { keep_logs_ = true; }

 private:
  std::filesystem::path path_;
  std::string name_;
  std::filesystem::path made_parent_;  // was not there before
  bool keep_logs_ = false;
};

}  // namespace meshstage::tools::drill
